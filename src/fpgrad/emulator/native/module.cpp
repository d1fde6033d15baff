// Entry point of fpgrad.emulator._native: what Python calls. Instructions arrive as arrays of leaf values.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstring>

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
        m().dram.write(row, static_cast<std::int64_t>(words.shape(0)), words.data());
    }

    Out<Word> read(std::int64_t row, std::int64_t rows) {
        m().dram.check(row, rows);
        Word* data;
        auto out = make_array<Word>({static_cast<std::size_t>(rows), side()}, data);
        m().dram.read(row, rows, data);
        return out;
    }

    // Rows of unit, index, step, start and end: see timing.hpp.
    static Out<std::int64_t> follow_entry(Rows<Leaf> load, Rows<Leaf> matrix, Rows<Leaf> vector, Rows<Leaf> store,
                                          const std::vector<Leaf>& start, const std::vector<Leaf>& stop,
                                          const std::vector<std::vector<Leaf>>& tokens, std::int64_t steps,
                                          const nb::dict& clockwork) {
        const Program program{instructions<Load>(load), instructions<Matrix>(matrix), instructions<Vector>(vector),
                              instructions<Store>(store)};
        Clockwork c;
        c.visit([&](const char* name, std::int64_t& value) { value = nb::cast<std::int64_t>(clockwork[name]); });
        const std::vector<Record> records = follow(program, make_entry(start, stop, tokens), steps, c);
        std::int64_t* data;
        auto out = make_array<std::int64_t>({records.size(), 5}, data);
        for (const Record& r : records)
            for (std::int64_t x : {r.unit, r.index, r.step, r.start, r.end}) *data++ = x;
        return out;
    }

    // None after a whole run, else (message, unit or -1, instruction, step). Raises KeyboardInterrupt.
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
            return nb::make_tuple(s.message, s.unit, s.index, s.step);
        }
        if (!whole) throw nb::python_error();
        return nb::none();
    }

    std::vector<std::int64_t> saturated() { return {m().saturated_vector, m().saturated_accumulator}; }
    std::vector<std::int64_t> saturated_vector() { return executor_.saturated_vector(); }
    std::vector<std::int64_t> saturated_accumulator() { return executor_.saturated_accumulator(); }

    // A memory as codes (int64), in the reference's shapes; external memory as words (uint32).
    nb::object dump(const std::string& name) {
        const int shift = m().config.word_shift();
        if (name == "dram") return nb::cast(read(0, m().dram.touched()));
        std::int64_t* data;
        const auto t = side();
        if (name == "mantissas" || name == "exponents") {
            const bool tiles = name == "mantissas";
            const auto n = m().exponents.size();
            auto out = make_array<std::int64_t>(tiles ? std::vector<std::size_t>{n, t, t} : std::vector{n}, data);
            for (std::int64_t i = 0; tiles && i < m().mantissas.size(); ++i) data[i] = m().mantissas.get(i);
            if (!tiles) std::copy(m().exponents.begin(), m().exponents.end(), data);
            return nb::cast(out);
        }
        if (name == "mask") {
            const std::int64_t rows = m().depth[SPACE_MASK];
            auto out = make_array<std::int64_t>({static_cast<std::size_t>(rows), t}, data);
            for (std::int64_t i = 0, lanes = m().config.side; i < rows * lanes; ++i)
                data[i] = m().mask(i / lanes, i % lanes);
            return nb::cast(out);
        }
        const Buffer<Word>& words = row_memory(name);
        const bool flat = words.size() == t && (name == "scalars" || name == "random");
        auto out = make_array<std::int64_t>(flat ? std::vector{t} : std::vector{words.size() / t, t}, data);
        for (std::size_t i = 0; i < words.size(); ++i) data[i] = words[i] >> (name == "random" ? 0 : shift);
        return nb::cast(out);
    }

    // Octets that each memory takes, and all else that grows with the machine or the program.
    nb::dict sizes() {
        nb::dict out;
        for (int s = 1; s < SPACE_MASK; ++s) out[space_name(s)] = octets(m().rows[s]);
        out["mask"] = octets(m().masks), out["mantissas"] = m().mantissas.size() * m().mantissas.octets();
        out["exponents"] = octets(m().exponents), out["dram"] = m().dram.octets();
        out["accumulated"] = m().accumulated.octets(), out["program"] = executor_.program().octets();
        const FastPath& fast = executor_.fast();
        out["plans"] = fast.plan_octets(), out["forms"] = fast.form_octets(), out["scratch"] = fast.scratch_octets();
        return out;
    }

    // Overwrites one element, by its number in the flattened memory.
    void poke(const std::string& name, std::int64_t index, std::int64_t value) {
        if (name == "dram") {
            const auto t = static_cast<std::int64_t>(side());
            std::vector<Word> row(side());
            m().dram.read(index / t, 1, row.data());
            row[static_cast<std::size_t>(index % t)] = static_cast<Word>(value);
            m().dram.write(index / t, 1, row.data());
        } else {
            set(name, index, &value, 1);
        }
        executor_.memories_changed();
    }

    // Overwrites a memory on the chip with the flattened values of a dump.
    void restore(const std::string& name, Rows<std::int64_t> values) {
        set(name, 0, values.data(), static_cast<std::int64_t>(values.shape(1)));
        executor_.memories_changed();
    }

  private:
    void set(const std::string& name, std::int64_t first, const std::int64_t* values, std::int64_t count) {
        const auto into = [&](std::size_t size, auto put) {
            if (first < 0 || first + count > static_cast<std::int64_t>(size)) throw nb::index_error(name.c_str());
            for (std::int64_t i = 0; i < count; ++i) put(first + i, values[i]);
        };
        using Integer = std::int64_t;
        const int shift = name == "random" ? 0 : m().config.word_shift();
        const Integer lanes = m().config.side;
        if (name == "mantissas")
            into(m().mantissas.size(), [&](Integer i, Integer x) { m().mantissas.set(i, x); });
        else if (name == "exponents")
            into(m().exponents.size(), [&](Integer i, Integer x) { m().exponents[i] = static_cast<std::int32_t>(x); });
        else if (name == "mask")
            into(m().depth[SPACE_MASK] * lanes, [&](Integer i, Integer x) { m().set_mask(i / lanes, i % lanes, x); });
        else
            into(row_memory(name).size(),
                 [&](Integer i, Integer x) { row_memory(name)[i] = static_cast<Word>(x << shift); });
    }
    Machine& m() { return executor_.machine(); }
    std::size_t side() { return static_cast<std::size_t>(m().config.side); }
    Buffer<Word>& row_memory(const std::string& name) {
        for (int s = 1; s < SPACES; ++s)
            if (name == space_name(s)) return m().rows[s];
        if (name == "scalars") return m().scalars;
        if (name == "random") return m().random;
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
        .def("saturated_vector", &Native::saturated_vector)
        .def("saturated_accumulator", &Native::saturated_accumulator)
        .def("dump", &Native::dump)
        .def("restore", &Native::restore)
        .def("sizes", &Native::sizes)
        .def("poke", &Native::poke);
}
