// Sums over the cores: by the kernels of vector passes, or exactly where a number is odd or clamped.
#include "exchange.hpp"

#include <algorithm>

#include "smallfloat.hpp"

namespace fpgrad {

namespace {

// For a row near the ends of the range: the kernel goes on with the exact sum, and counts what was clamped.
int exact_row(const void* context, const Word* a, const Word*, const Word* c, const Word*, bool, std::int64_t,
              Word* out) {
    const Config& config = *static_cast<const Config*>(context);
    const Float f(config);
    int count = 0;
    for (int lane = 0; lane < config.side; ++lane) {
        const Rounded y = f.add(a[lane] >> config.word_shift(), c[lane] >> config.word_shift());
        count += y.over;
        out[lane] = static_cast<Word>(y.code << config.word_shift());
    }
    return count;
}

}  // namespace

Exchange::Exchange(const Config& config, const Kernels& kernels)
    : config_(config), kernels_(kernels),
      covered_(config.float_exponent_bits == 8 && config.float_mantissa_bits == 15 &&
               (config.side == 4 || config.side == 8 || config.side == 16)),
      sent_(config.cores), taken_(config.cores, 0) {}

void Exchange::clear() {
    for (auto& rows : sent_) rows.clear();
    sums_.clear(), clamped_.clear();
    made_ = 0;
    std::fill(taken_.begin(), taken_.end(), 0);
}

void Exchange::send(int core, const Word* row) {
    sent_[core].insert(sent_[core].end(), row, row + config_.side);
}

int Exchange::take(int core, Word* row) {
    const std::int64_t kept = static_cast<std::int64_t>(clamped_.size()), at = taken_[core]++ - (made_ - kept);
    std::copy_n(sums_.data() + at * config_.side, config_.side, row);
    return clamped_[at];
}

bool Exchange::sum() {
    std::int64_t rows = sent(0);
    for (int core = 1; core < config_.cores; ++core) rows = std::min(rows, sent(core));
    if (rows == 0) return false;
    // What every core has taken goes.
    const std::int64_t t = config_.side, kept = static_cast<std::int64_t>(clamped_.size());
    const std::int64_t gone = *std::min_element(taken_.begin(), taken_.end()) - (made_ - kept);
    sums_.erase(sums_.begin(), sums_.begin() + gone * t);
    clamped_.erase(clamped_.begin(), clamped_.begin() + gone);

    sums_.insert(sums_.end(), sent_[0].begin(), sent_[0].begin() + rows * t);
    clamped_.resize(clamped_.size() + rows, 0);
    if (config_.cores > 1 && (!covered_ || odd(rows) || !add(rows))) add_exactly(rows);
    for (auto& sent : sent_) sent.erase(sent.begin(), sent.begin() + rows * t);
    made_ += rows;
    return true;
}

bool Exchange::odd(std::int64_t rows) const {
    return std::any_of(sent_.begin(), sent_.end(),
                       [&](const auto& sent) { return kernels_.odd(sent.data(), rows * config_.side); });
}

// Adds the other cores' rows to the last sums; false when a number was clamped and they are of no use.
bool Exchange::add(std::int64_t rows) {
    const std::int64_t t = config_.side;
    const FastTable none{};
    PassArgs p{};
    const std::int64_t by_row[LOOPS] = {t, rows * t, rows * t, rows * t};
    Word* const total = sums_.data() + sums_.size() - rows * t;
    p.n[0] = rows, p.n[1] = p.n[2] = p.n[3] = 1;
    for (Rows* r : {&p.a, &p.b, &p.c, &p.d, &p.target}) r->data = total, std::copy_n(by_row, LOOPS, r->s);
    p.alu = ALU_ADD, p.function = NONE, p.table = &none;
    p.row_mask_loop = p.lane_mask_loop = MASK_NEVER;
    p.lane_limit = t;
    p.slow_row = exact_row, p.context = &config_;
    const PassFunction run = kernels_.pass(config_.side, p);
    for (int core = 1; core < config_.cores; ++core) {
        p.c.data = sent_[core].data();
        if (run(p)) return false;
    }
    return true;
}

void Exchange::add_exactly(std::int64_t rows) {
    const Float f(config_);
    const int shift = config_.word_shift();
    const std::int64_t words = rows * config_.side;
    Word* const total = sums_.data() + sums_.size() - words;
    for (std::int64_t x = 0; x < words; ++x) {
        Code sum = sent_[0][x] >> shift;
        bool over = false;
        for (int core = 1; core < config_.cores; ++core) {
            const Rounded y = f.add(sum, sent_[core][x] >> shift);
            sum = y.code, over |= y.over;
        }
        total[x] = static_cast<Word>(sum << shift);
        clamped_[clamped_.size() - rows + x / config_.side] += over;
        saturated_ += over;
    }
}

std::int64_t Exchange::left() const {
    std::int64_t waiting = 0;
    for (int core = 0; core < config_.cores; ++core) waiting = std::max(waiting, sent(core));
    return waiting + made_ - *std::min_element(taken_.begin(), taken_.end());
}

}  // namespace fpgrad
