// The fast path for machines of fp24 with tiles of side 4, 8 or 16: plans made once a program, kernels run by them.
//
// What a plan does not cover goes the way of the reference (units.hpp), instruction by instruction: other
// formats, sums that might saturate on the way, rows with words that the machine never makes itself, and
// the rare options that no kernel has.
#pragma once

#include "kernels.hpp"
#include "machine.hpp"
#include "pool.hpp"

namespace fpgrad {

// What is known of a vector pass before it runs.
struct PassPlan {
    bool ok = false;
    bool buffered = false;   // results lie aside until every row is read
    bool splittable = false; // no iteration of (i2, i1) touches what another writes
    PassArgs args{};
    int sources[4] = {};     // of a, b, c, d after simplification
};

class FastPath {
  public:
    FastPath(Machine& machine, const Kernels& kernels, Pool& pool);

    void plan(const Program& program);
    // These return false when the instruction must go the exact way.
    bool matrix(std::size_t index);
    bool pass(std::size_t index, std::int64_t& saturated);
    // To be told of what went the exact way, and of loads.
    void written(const Vector& v);
    void written(const Load& l);
    void written_by_host();

  private:
    PassPlan plan_pass(const Vector& v) const;
    bool plan_matrix(const Matrix& i) const;
    void find_conflicts(const Vector& v, PassPlan& plan) const;
    bool reads_odd(const Vector& v) const;
    bool stream_odd(const Loops& n, const RowStream& s) const;
    void mark(int space, std::int64_t first, std::int64_t rows);
    Rows stream(const Loops& n, const RowStream& s, Buffer<Word>& scratch) const;
    void split_pass(const PassArgs& args, std::int64_t& saturated);
    void clear_odd(const Vector& v);
    void build_forms(const Matrix& i);
    const std::int16_t* form(int which, std::int64_t tile);
    void output_tile(const Matrix& i, std::int64_t i1, std::int64_t i0, Word* words, std::uint8_t* over,
                     std::vector<Product>& order) const;

    Machine& m_;
    const Kernels& kernels_;
    Pool& pool_;
    const Program* program_ = nullptr;
    bool covered_;  // whether the formats are those of the kernels
    FastTable tables_[FUNCTIONS];
    std::vector<PassPlan> passes_;
    std::vector<bool> matrices_;
    // Rows that hold a word that the kernels do not take.
    std::vector<std::uint8_t> odd_[SPACES];
    std::int64_t odd_count_[SPACES] = {};
    // Tiles in the order that products read them: transposed rows, pairs, pairs of the transposed.
    enum { LEFT_TRANSPOSED, RIGHT, RIGHT_TRANSPOSED, FORMS };
    Buffer<std::int16_t> forms_[FORMS];
    std::vector<std::uint8_t> made_[FORMS];
    std::vector<std::vector<Product>> orders_;
    Buffer<Word> scratch_[2], random_rows_, buffered_rows_, constants_[SOURCES];
};

}  // namespace fpgrad
