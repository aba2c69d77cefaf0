// Sequences with keys, values and queries for the tests of attention, and softmax(q k^T / sqrt(d))
// v in double.
#pragma once
#include <algorithm>
#include <functional>
#include <numeric>
#include <vector>

#include "ops/support.h"

namespace lorry::test {

// One sequence: its keys and values for `length` tokens, in blocks scattered over a pool.
struct AttentionSequence {
  Matrix k, v, q;  // [length, K d], [length, K d], [length, H d]
};

struct AttentionCache {
  Buffer k_memory, v_memory;
  KvLayer kv;
};

// All of its memory is NaN.
inline AttentionCache make_cache(Ops& ops, int64_t blocks, const AttentionSpec& spec) {
  AttentionCache cache;
  cache.kv.k = cache.kv.v = ops.kv_layout(blocks, spec);
  const auto bytes = static_cast<size_t>(cache.kv.k.shape.size() * size_of(cache.kv.k.dtype));
  cache.k_memory = Buffer(bytes);
  cache.v_memory = Buffer(bytes);
  cache.kv.k.data = cache.k_memory.data();
  cache.kv.v.data = cache.v_memory.data();
  std::memset(cache.kv.k.data, 0xff, bytes);
  std::memset(cache.kv.v.data, 0xff, bytes);
  return cache;
}

// Rows [first, last] of m [*, heads d] as a cache keeps them, in double.
inline std::vector<double> stored_rows(const Tensor& m, int64_t first, int64_t last, int64_t d,
                                       const std::function<double(double)>& rounded, bool int8) {
  std::vector<double> out;
  for (int64_t r = first; r <= last; ++r) {
    for (int64_t c = 0; c < m.cols(); c += d) {
      const float* head = m.row<const float>(r) + c;
      float most = 0;
      for (int64_t i = 0; i < d; ++i) most = std::max(most, std::abs(head[i]));
      const float scale = most / 127.0F;
      for (int64_t i = 0; i < d; ++i) {
        const double q = double{std::nearbyint(head[i] * (127.0F / most))} * double{scale};
        out.push_back(int8 ? q : rounded(double{head[i]}));
      }
    }
  }
  return out;
}

// Sequences with block tables, and calls over any ranges of their positions.
class AttentionBatch {
 public:
  AttentionBatch(const AttentionSpec& spec, const std::vector<int32_t>& lengths, unsigned seed)
      : spec_(spec), lengths_(lengths) {
    const int32_t longest = *std::max_element(lengths.begin(), lengths.end());
    max_blocks_ = (longest + kBlockTokens - 1) / kBlockTokens;
    std::vector<int32_t> blocks(lengths.size() * static_cast<size_t>(max_blocks_));
    std::iota(blocks.begin(), blocks.end(), 1);
    std::shuffle(blocks.begin(), blocks.end(), std::mt19937(seed));
    table_ = blocks;
    const int64_t kd = int64_t{spec.kv_heads} * spec.head_dim;
    for (const int32_t n : lengths) {
      sequences_.push_back(
          {random_matrix(Dtype::f32, n, kd, ++seed), random_matrix(Dtype::f32, n, kd, ++seed),
           random_matrix(Dtype::f32, n, int64_t{spec.heads} * spec.head_dim, ++seed, 1.5)});
    }
  }

  int64_t blocks() const { return static_cast<int64_t>(table_.size()) + 1; }
  const AttentionSequence& sequence(size_t s) const { return sequences_[s]; }

  void store(Ops& ops, const AttentionCache& cache, size_t s, int32_t first, int32_t n) const {
    std::vector<int32_t> slots;
    for (int32_t p = first; p < first + n; ++p) {
      slots.push_back(block(s, p / kBlockTokens) * kBlockTokens + p % kBlockTokens);
    }
    ops.kv_write(cache.kv, rows(sequences_[s].k(), first, n), rows(sequences_[s].v(), first, n),
                 view(slots.data(), Dtype::i32, {n}), spec_);
  }

  // Attention for positions [first, first + n) of each sequence named, as one call.
  struct Range {
    size_t sequence;
    int32_t first, n;
  };
  Matrix attend(Ops& ops, const AttentionCache& cache, const std::vector<Range>& ranges) const {
    std::vector<int32_t> begin{0};
    std::vector<int32_t> length;
    std::vector<int32_t> table;
    for (const Range& r : ranges) {
      begin.push_back(begin.back() + r.n);
      length.push_back(r.first + r.n);
      for (int32_t b = 0; b < max_blocks_; ++b) {
        const int32_t seen = spec_.window > 0 ? std::max(0, r.first - spec_.window + 1) : 0;
        table.push_back(b < seen / kBlockTokens ? -1 : block(r.sequence, b));
      }
    }
    const int64_t width = int64_t{spec_.heads} * spec_.head_dim;
    const Matrix q(Dtype::f32, begin.back(), width, 2);
    for (size_t i = 0; i < ranges.size(); ++i) {
      for (int32_t r = 0; r < ranges[i].n; ++r) {
        const float* from =
            sequences_[ranges[i].sequence].q().row<const float>(ranges[i].first + r);
        std::copy(from, from + width, q().row<float>(begin[i] + r));
      }
    }
    Matrix o(ops.act(), begin.back(), width, 7);
    const Buffer scratch(ops.attention_scratch_bytes(begin.back(), spec_));
    std::memset(scratch.data(), 0xff, scratch.size());
    const AttentionPlan plan{
        begin, length, table, max_blocks_,
        view(scratch.data(), Dtype::u8, {static_cast<int64_t>(scratch.size())})};
    ops.attention(o(), q(), cache.kv, plan, spec_);
    return o;
  }

  // Position p of sequence s, in double.
  void expect_row(const Tensor& o, int64_t row, size_t s, int32_t p) const {
    const int32_t d = spec_.head_dim;
    const AttentionSequence& seq = sequences_[s];
    const bool int8 = spec_.kv == KvFormat::int8;
    const int32_t low = spec_.window > 0 ? std::max(0, p - spec_.window + 1) : 0;
    const auto round = [&](double x) { return rounded(o.dtype, x); };
    const std::vector<double> keys = stored_rows(seq.k(), low, p, d, round, int8);
    const std::vector<double> values = stored_rows(seq.v(), low, p, d, round, int8);
    const auto at = [&](int64_t j, int64_t c) {
      return static_cast<size_t>((j - low) * int64_t{spec_.kv_heads} * d + c);
    };
    for (int32_t h = 0; h < spec_.heads; ++h) {
      const int64_t kv = h / (spec_.heads / spec_.kv_heads) * d;
      std::vector<double> e;
      double sum = 0;
      for (int32_t j = low; j <= p; ++j) {
        double score = 0;
        for (int32_t i = 0; i < d; ++i) {
          const double q = get(seq.q(), p, h * d + i);
          score += (int8 ? q : round(q)) * keys[at(j, kv + i)];
        }
        e.push_back(score / std::sqrt(double{static_cast<double>(d)}));
      }
      const double most = *std::max_element(e.begin(), e.end());
      for (double& x : e) sum += x = std::exp(x - most);
      for (int32_t i = 0; i < d; ++i) {
        double expected = 0;
        for (int32_t j = low; j <= p; ++j) {
          expected += e[static_cast<size_t>(j - low)] / sum * values[at(j, kv + i)];
        }
        ASSERT_NEAR(get(o, row, h * d + i), expected, std::max(1e-5, 5 * rounding(o.dtype)))
            << "sequence " << s << " position " << p << " head " << h << " dimension " << i;
      }
    }
  }

 private:
  int32_t block(size_t s, int32_t b) const {
    return table_[s * static_cast<size_t>(max_blocks_) + static_cast<size_t>(b)];
  }

  AttentionSpec spec_;
  std::vector<int32_t> lengths_;
  int32_t max_blocks_ = 0;
  std::vector<int32_t> table_;
  std::vector<AttentionSequence> sequences_;
};

}  // namespace lorry::test
