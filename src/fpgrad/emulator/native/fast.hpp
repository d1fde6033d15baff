// The fast path for machines of fp24 with tiles of side 4, 8 or 16: plans made once a program, kernels run by them.
//
// What a plan does not cover goes the way of the reference (units.hpp), instruction by instruction: other
// formats, rows with words that the machine never makes itself, and the rare options that no kernel has.
#pragma once

#include <memory>

#include "kernels.hpp"
#include "machine.hpp"
#include "pool.hpp"
#include "units.hpp"

namespace fpgrad {

// What is known of a vector pass before it runs.
struct PassPlan {
    // How a stream of transposed rows, or of bits for a reducing pass, is made into rows.
    enum Transposing { NOT, BY_TILE, BY_ROW };

    bool ok = false;
    bool buffered = false;     // results lie aside until every row is read
    bool splittable = true;    // no iteration of (i3, i2, i1) touches what another writes
    bool independent = true;   // nor does any row
    int split = -1;            // the loop whose iterations threads share
    std::int64_t split_unit = 1;
    PassArgs args{};
    PassFunction run = nullptr;
    int sources[4] = {};       // of a, b, c, d after simplification
    Transposing transposing[2] = {NOT, NOT};
};

// What is known of a matrix instruction: where the tiles of each term are, counted from those of the first.
struct MatrixPlan {
    bool ok = false;
    bool may_saturate = false;  // on the way: the order of sums may matter
    std::vector<std::int32_t> left, right;
};

// Tiles in one form that products read. Tile n has the place n & mask and keeps it until another tile needs it: so many
// places that the tiles of no instruction meet are enough, and few enough to stay in a cache.
struct FormMemory {
    struct alignas(64) Line {
        std::uint8_t octets[64];
    };
    std::unique_ptr<Line[]> lines;
    std::vector<std::int32_t> tiles;  // which is in each place, or -1
    std::int64_t mask() const { return static_cast<std::int64_t>(tiles.size()) - 1; }
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
    // Octets of what is kept beside the machine's memories.
    std::int64_t plan_octets() const;
    std::int64_t form_octets() const;
    std::int64_t scratch_octets() const;

  private:
    // What a thread needs for an output tile.
    struct Scratch {
        std::vector<std::int32_t> exponents;
        std::vector<std::uint8_t> clamped;
    };

    PassPlan plan_pass(const Vector& v) const;
    // How far apart rows of a memory are, in the units of Rows.
    std::int64_t row_size(std::int64_t space) const {
        return space == SPACE_MASK ? m_.config.mask_octets() : m_.config.side;
    }
    Rows plan_stream(const Vector& v, const RowStream& s, PassPlan::Transposing& transposing) const;
    MatrixPlan plan_matrix(const Matrix& i) const;
    bool reads_odd(const Vector& v) const;
    bool stream_odd(const Loops& n, const RowStream& s) const;
    void mark(int space, std::int64_t first, std::int64_t rows);
    void* transpose(const Loops& n, const RowStream& s, PassPlan::Transposing how, Buffer<Word>& scratch) const;
    void write_buffered(const Vector& v);
    void split_pass(const PassPlan& plan, std::int64_t& saturated);
    void clear_odd(const Vector& v);
    void forget_forms(const Vector& v);
    void plan_places(int form, std::int64_t tiles);
    void build_forms(const Matrix& i, const MatrixPlan& plan);
    bool made(int form, std::int64_t tile) const {
        return made_[tile] >> form & 1 && forms_[form].tiles[tile & forms_[form].mask()] == tile;
    }
    void form(int which, std::int64_t tile);
    Places places(int form, std::int64_t first, const std::vector<std::int32_t>& offset) const;
    void output_tile(const Matrix& i, const MatrixPlan& plan, std::int64_t number, Word* words, std::uint8_t* over,
                     Scratch& scratch) const;
    void sum(const Terms& terms, std::int32_t* sums) const;
    bool sum_in_order(Terms terms, std::int32_t* sums, std::vector<std::uint8_t>& clamped) const;

    Machine& m_;
    const Kernels& kernels_;
    Pool& pool_;
    const Program* program_ = nullptr;
    bool covered_;  // whether the formats are those of the kernels
    FastTable tables_[FUNCTIONS];
    std::vector<PassPlan> passes_;
    std::vector<MatrixPlan> matrices_;
    // Rows that hold a word that the kernels do not take.
    std::vector<std::uint8_t> odd_[SPACES];
    std::int64_t odd_count_[SPACES] = {};
    bool bytes_ = false;          // whether forms are in bytes
    std::int64_t form_size_ = 0;  // octets of a tile
    FormMemory forms_[FORMS];
    std::vector<std::uint8_t> made_;  // a bit for each form of a tile that was made since the tile was written
    std::vector<Scratch> scratches_;
    Buffer<Word> scratch_[2], random_rows_, buffered_rows_, constants_[SOURCES];
};

}  // namespace fpgrad
