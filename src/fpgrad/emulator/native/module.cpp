// Entry point of fpgrad.emulator._native: what Python calls. Instructions arrive as arrays of leaf values.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <map>

#include "executor.hpp"
#include "timing.hpp"

namespace nb = nanobind;
using namespace fpgrad;

namespace {

template <class T> using Rows = nb::ndarray<const T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
template <class T> using Out = nb::ndarray<nb::numpy, T>;

// An array that owns its data.
template <class T> Out<T> make_array(std::vector<std::size_t> shape, T*& data) {
    std::size_t size = 1;
    for (std::size_t n : shape) size *= n;
    data = new T[size ? size : 1]();
    nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<T*>(p); });
    return Out<T>(data, shape.size(), shape.data(), owner);
}

template <class I> std::vector<I> instructions(const Rows<Leaf>& leaves) {
    return decode<I>(leaves.data(), leaves.shape(0), leaves.shape(1));
}

Config make_config(const nb::dict& numbers, const nb::dict& tables) {
    Config c;
    c.visit([&](const char* name, auto& value) {
        value = nb::cast<std::remove_reference_t<decltype(value)>>(numbers[name]);
    });
    for (const auto& [function, coefficients] : tables) {
        Table& table = c.tables[nb::cast<int>(function)];
        table.base = nb::cast<std::vector<std::int64_t>>(coefficients[0]);
        table.slope = nb::cast<std::vector<std::int64_t>>(coefficients[1]);
    }
    return c;
}

Entry make_entry(const std::vector<Leaf>& start, const std::vector<Leaf>& stop,
                 const std::vector<std::vector<Leaf>>& tokens) {
    Entry entry;
    for (int u = 0; u < UNITS; ++u) {
        entry.start[u] = start.at(u), entry.stop[u] = stop.at(u);
        for (int v = 0; v < UNITS; ++v) entry.tokens[u][v] = tokens.at(u).at(v);
    }
    return entry;
}

// The kernels that this processor can run, slowest first.
std::vector<const Kernels*> available() {
    std::vector<const Kernels*> all{&kernels_baseline};
#if FPGRAD_X86_64
    all.push_back(&kernels_avx2), all.push_back(&kernels_avx512);
    all.push_back(&kernels_avx512vnni);
#endif
    std::erase_if(all, [](const Kernels* k) { return !k->supported(); });
    return all;
}

const Kernels& kernels(const std::string& level) {
    for (const Kernels* k : available())
        if (level == k->name) return *k;
    throw nb::value_error(("no kernels of level " + level).c_str());
}

class Native {
  public:
    Native(const nb::dict& numbers, const nb::dict& tables, int threads, const std::string& level)
        : executor_(make_config(numbers, tables), threads, kernels(level)) {}

    void load_program(Rows<Leaf> load, Rows<Leaf> matrix, Rows<Leaf> vector, Rows<Leaf> store) {
        executor_.load({instructions<Load>(load), instructions<Matrix>(matrix), instructions<Vector>(vector),
                        instructions<Store>(store)});
    }

    void write(std::int64_t row, Rows<Word> words) {
        executor_.dram().write(row, static_cast<std::int64_t>(words.shape(0)), words.data());
    }

    Out<Word> read(std::int64_t row, std::int64_t rows) {
        executor_.dram().check(row, rows);
        Word* data;
        auto out = make_array<Word>({static_cast<std::size_t>(rows), side()}, data);
        executor_.dram().read(row, rows, data);
        return out;
    }

    // Rows of core, unit, index, step, start and end: see timing.hpp.
    static Out<std::int64_t> follow_entry(Rows<Leaf> load, Rows<Leaf> matrix, Rows<Leaf> vector, Rows<Leaf> store,
                                          const std::vector<Leaf>& start, const std::vector<Leaf>& stop,
                                          const std::vector<std::vector<Leaf>>& tokens, std::int64_t steps,
                                          const std::vector<std::int64_t>& bases, const nb::dict& clockwork) {
        const Program program{instructions<Load>(load), instructions<Matrix>(matrix), instructions<Vector>(vector),
                              instructions<Store>(store)};
        Clockwork c;
        c.visit([&](const char* name, std::int64_t& value) { value = nb::cast<std::int64_t>(clockwork[name]); });
        const std::vector<Record> records = follow(program, make_entry(start, stop, tokens), steps, bases, c);
        std::int64_t* data;
        auto out = make_array<std::int64_t>({records.size(), 6}, data);
        for (const Record& r : records)
            for (std::int64_t x : {r.core, r.unit, r.index, r.step, r.start, r.end}) *data++ = x;
        return out;
    }

    // None after a whole run, else (message, core, unit or -1, instruction, step). Raises KeyboardInterrupt.
    nb::object run(const std::vector<Leaf>& start, const std::vector<Leaf>& stop,
                   const std::vector<std::vector<Leaf>>& tokens, std::int64_t steps,
                   const std::vector<std::int64_t>& bases) {
        const Entry entry = make_entry(start, stop, tokens);
        bool whole = true;
        try {
            nb::gil_scoped_release release;
            whole = executor_.run(entry, steps, bases.data(), [] {
                nb::gil_scoped_acquire acquire;
                return PyErr_CheckSignals() != 0;
            });
        } catch (const Stop& s) {
            return nb::make_tuple(s.message, s.core, s.unit, s.index, s.step);
        }
        if (!whole) throw nb::python_error();
        return nb::none();
    }

    // By instruction: elements that saturated in passes, in accumulator rows that passes took, in sums that loads took.
    nb::tuple saturated() {
        const Saturated s = executor_.saturated();
        return nb::make_tuple(s.vector, s.accumulator, s.sums);
    }

    // Rows of external memory that may have been written.
    std::int64_t touched() { return executor_.dram().touched(); }

    // A core's memory as codes (int64), in the reference's shapes.
    nb::object dump(const std::string& name, int core) {
        Machine& m = executor_.machine(core);
        const int shift = m.config.word_shift();
        std::int64_t* data;
        const auto t = side();
        if (name == "mantissas" || name == "exponents") {
            const bool tiles = name == "mantissas";
            const auto n = m.exponents.size();
            auto out = make_array<std::int64_t>(tiles ? std::vector<std::size_t>{n, t, t} : std::vector{n}, data);
            for (std::int64_t i = 0; tiles && i < m.mantissas.size(); ++i) data[i] = m.mantissas.get(i);
            if (!tiles) std::copy(m.exponents.begin(), m.exponents.end(), data);
            return nb::cast(out);
        }
        if (name == "mask") {
            const std::int64_t rows = m.depth[SPACE_MASK];
            auto out = make_array<std::int64_t>({static_cast<std::size_t>(rows), t}, data);
            for (std::int64_t i = 0, lanes = m.config.side; i < rows * lanes; ++i)
                data[i] = m.mask(i / lanes, i % lanes);
            return nb::cast(out);
        }
        const Buffer<Word>& words = row_memory(m, name);
        const bool flat = words.size() == t && (name == "scalars" || name == "random");
        auto out = make_array<std::int64_t>(flat ? std::vector{t} : std::vector{words.size() / t, t}, data);
        for (std::size_t i = 0; i < words.size(); ++i) data[i] = words[i] >> (name == "random" ? 0 : shift);
        return nb::cast(out);
    }

    // Octets that each memory takes on all cores, and all else that grows with the machine or the program.
    std::map<std::string, std::int64_t> sizes() {
        std::map<std::string, std::int64_t> sum;
        for (int core = 0; core < executor_.config().cores; ++core) {
            const Machine& m = executor_.machine(core);
            for (int s = 1; s < SPACE_MASK; ++s) sum[space_name(s)] += octets(m.rows[s]);
            sum["mask"] += octets(m.masks), sum["mantissas"] += m.mantissas.size() * m.mantissas.octets();
            sum["exponents"] += octets(m.exponents), sum["accumulated"] += m.accumulated.octets();
            const FastPath& fast = executor_.fast(core);
            sum["plans"] += fast.plan_octets(), sum["forms"] += fast.form_octets();
            sum["scratch"] += fast.scratch_octets();
        }
        sum["dram"] = executor_.dram().octets(), sum["exchange"] = executor_.exchange().octets();
        sum["program"] = static_cast<std::int64_t>(executor_.program().octets());
        return sum;
    }

    // Overwrites a core's memory from an element on, which is counted in the flattened memory.
    void restore(const std::string& name, int core, std::int64_t first, Rows<std::int64_t> values) {
        Machine& m = executor_.machine(core);
        const auto into = [&](auto size, auto put) {
            const auto n = static_cast<std::int64_t>(values.shape(1));
            if (first < 0 || first + n > static_cast<std::int64_t>(size)) throw nb::index_error(name.c_str());
            for (std::int64_t i = 0; i < n; ++i) put(first + i, values.data()[i]);
        };
        using Integer = std::int64_t;
        const int shift = name == "random" ? 0 : m.config.word_shift();
        const Integer lanes = m.config.side;
        if (name == "mantissas") {
            into(m.mantissas.size(), [&](Integer i, Integer x) { m.mantissas.set(i, x); });
        } else if (name == "exponents") {
            into(m.exponents.size(), [&](Integer i, Integer x) { m.exponents[i] = static_cast<std::int32_t>(x); });
        } else if (name == "mask") {
            into(m.depth[SPACE_MASK] * lanes, [&](Integer i, Integer x) { m.set_mask(i / lanes, i % lanes, x); });
        } else {
            Buffer<Word>& words = row_memory(m, name);
            into(words.size(), [&](Integer i, Integer x) { words[i] = static_cast<Word>(x << shift); });
        }
        executor_.memories_changed(core);
    }

  private:
    std::size_t side() const { return static_cast<std::size_t>(executor_.config().side); }
    static Buffer<Word>& row_memory(Machine& m, const std::string& name) {
        for (int s = 1; s < SPACES; ++s)
            if (name == space_name(s)) return m.rows[s];
        if (name == "scalars") return m.scalars;
        if (name == "random") return m.random;
        throw nb::key_error(name.c_str());
    }

    Executor executor_;
};

}  // namespace

NB_MODULE(_native, module) {
    module.doc() = "Native executor of the emulator.";
    module.attr("x86_64") = static_cast<bool>(FPGRAD_X86_64);
    module.def("field_names", [](int unit) {
        switch (unit) {
        case LOAD: return field_names<Load>();
        case MATRIX: return field_names<Matrix>();
        case VECTOR: return field_names<Vector>();
        default: return field_names<Store>();
        }
    });
    module.def("available_levels", [] {
        std::vector<std::string> names;
        for (const Kernels* k : available()) names.emplace_back(k->name);
        return names;
    });
    module.def("follow", &Native::follow_entry);
    nb::exception<Fault>(module, "Fault", PyExc_RuntimeError);
    nb::class_<Native>(module, "Native")
        .def(nb::init<const nb::dict&, const nb::dict&, int, const std::string&>())
        .def("load_program", &Native::load_program)
        .def("write", &Native::write)
        .def("read", &Native::read)
        .def("run", &Native::run)
        .def("saturated", &Native::saturated)
        .def("touched", &Native::touched)
        .def("dump", &Native::dump)
        .def("restore", &Native::restore)
        .def("sizes", &Native::sizes);
}
