// Paged attention against softmax(q k^T / sqrt(d)) v in double, and its invariances.
#include <algorithm>
#include <functional>
#include <numeric>
#include <tuple>

#include <gtest/gtest.h>

#include "ops/support.h"

namespace lorry::test {
namespace {

// One sequence: its keys and values for `length` tokens, in blocks scattered over a pool.
struct Sequence {
  Matrix k, v, q;  // [length, K d], [length, K d], [length, H d]
};

struct Cache {
  Buffer k_memory, v_memory;
  KvLayer kv;
};

// All of its memory is NaN.
Cache make_cache(Ops& ops, int64_t blocks, const AttentionSpec& spec) {
  Cache cache;
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
std::vector<double> stored_rows(const Tensor& m, int64_t first, int64_t last, int64_t d,
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
class Batch {
 public:
  Batch(const AttentionSpec& spec, const std::vector<int32_t>& lengths, unsigned seed)
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
  const Sequence& sequence(size_t s) const { return sequences_[s]; }

  void store(Ops& ops, const Cache& cache, size_t s, int32_t first, int32_t n) const {
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
  Matrix attend(Ops& ops, const Cache& cache, const std::vector<Range>& ranges) const {
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
    const Sequence& seq = sequences_[s];
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
  std::vector<Sequence> sequences_;
};

class AttentionTest : public testing::TestWithParam<std::tuple<Dtype, KvFormat>> {
 protected:
  static Dtype act() { return std::get<0>(GetParam()); }
  static AttentionSpec with_format(AttentionSpec spec) {
    spec.kv = std::get<1>(GetParam());
    return spec;
  }
};

TEST_P(AttentionTest, equals_the_reference_on_every_instruction_set) {
  struct Case {
    AttentionSpec spec;
    std::vector<int32_t> lengths, n;
  };
  const std::vector<Case> cases{
      {{6, 2, 16}, {1, 17, 40}, {1, 1, 40}},
      {{4, 4, 32}, {33, 5}, {3, 5}},
      {{8, 2, 64}, {70}, {20}},
      {{6, 1, 128}, {20, 300}, {1, 2}},
      {{2, 1, 6}, {19}, {19}},
      {{2, 1, 40}, {21, 16}, {1, 1}},
      {{2, 1, 256}, {260, 30}, {2, 1}},
      {{6, 2, 16, 7}, {1, 40, 50}, {1, 40, 1}},
      {{6, 2, 16, 100}, {290, 513}, {290, 30}},
      {{6, 2, 96, 100}, {290, 513}, {290, 1}},
  };
  unsigned seed = 50;
  for (Case c : cases) {
    c.spec = with_format(c.spec);
    SCOPED_TRACE(testing::Message() << c.spec.heads << "/" << c.spec.kv_heads << " heads of "
                                    << c.spec.head_dim << " window " << c.spec.window);
    const Batch batch(c.spec, c.lengths, seed += 100);
    Matrix o(act(), 1, 1);
    const auto attend = [&](Ops& ops) {
      const Cache cache = make_cache(ops, batch.blocks(), c.spec);
      std::vector<Batch::Range> ranges;
      for (size_t s = 0; s < c.lengths.size(); ++s) {
        batch.store(ops, cache, s, 0, c.lengths[s]);
        ranges.push_back({s, c.lengths[s] - c.n[s], c.n[s]});
      }
      o = batch.attend(ops, cache, ranges);
      return bytes_of(o());
    };
    same_everywhere(act(), attend, c.spec.kv == KvFormat::int8);
    const auto expect_reference = [&] {
      int64_t row = 0;
      for (size_t s = 0; s < c.lengths.size(); ++s) {
        for (int32_t i = 0; i < c.n[s]; ++i) {
          batch.expect_row(o(), row++, s, c.lengths[s] - c.n[s] + i);
        }
      }
    };
    expect_reference();
    // AMX has bits of its own over keys in bf16.
    ThreadPool pool(2);
    for (const Variant& v : variants()) {
      if (v.portable) continue;
      attend(*checked_ops(act(), pool, v));
      expect_reference();
    }
  }
}

// A prompt in one piece, in chunks, and token by token, alone and beside others, must give the
// same bits: what later tokens leave in the cache does not matter, nor what was there before.
TEST_P(AttentionTest, chunks_and_batch_mates_do_not_change_a_bit) {
  for (const int32_t window : {0, 21}) {
    const AttentionSpec spec = with_format({6, 2, 32, window});
    const Batch batch(spec, {270, 40}, 900);
    ThreadPool pool(3);
    const auto ops = checked_ops(act(), pool);
    Bytes whole;
    for (const int32_t chunk : {270, 1, 16, 37, 100}) {
      const Cache cache = make_cache(*ops, batch.blocks(), spec);
      batch.store(*ops, cache, 1, 0, 40);
      Bytes all;
      for (int32_t p = 0; p < 270; p += chunk) {
        const int32_t n = std::min(chunk, 270 - p);
        batch.store(*ops, cache, 0, p, n);
        if (p % 3 == 0) {
          append(all, bytes_of(batch.attend(*ops, cache, {{0, p, n}})()));
        } else {
          const Matrix o = batch.attend(*ops, cache, {{1, 30, 10}, {0, p, n}});
          append(all, bytes_of(rows(o(), 10, n)));
        }
      }
      if (whole.empty()) whole = all;
      EXPECT_TRUE(all == whole) << "chunks of " << chunk << ", window " << spec.window;
    }
  }
}

// One row over a long context works by splits when there are threads to spare.
TEST_P(AttentionTest, long_contexts_have_the_same_bits_on_any_number_of_threads) {
  const AttentionSpec spec = with_format({2, 1, 16});
  const Batch batch(spec, {9000, 1100}, 1000);
  Bytes first;
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    const auto ops = checked_ops(act(), pool);
    const Cache cache = make_cache(*ops, batch.blocks(), spec);
    batch.store(*ops, cache, 0, 0, 9000);
    batch.store(*ops, cache, 1, 0, 1100);
    Bytes all;
    for (const int32_t n : {1, 24, 200}) {
      const Matrix o = batch.attend(*ops, cache, {{0, 9000 - n, n}, {1, 1099, 1}});
      append(all, bytes_of(o()));
      batch.expect_row(o(), n - 1, 0, 8999);
      batch.expect_row(o(), n, 1, 1099);
    }
    if (first.empty()) first = all;
    EXPECT_TRUE(all == first) << threads << " threads";
  }
}

// Only the window's tokens are stored; the blocks hold NaN of another request before and after.
TEST_P(AttentionTest, another_requests_nan_is_never_seen) {
  const AttentionSpec spec = with_format({4, 2, 32, 20});
  const Batch batch(spec, {75}, 1100);
  for (const Variant& v : variants()) {
    ThreadPool pool(2);
    const auto ops = checked_ops(act(), pool, v);
    const Cache cache = make_cache(*ops, batch.blocks(), spec);
    batch.store(*ops, cache, 0, 70 - 19, 75 - (70 - 19));
    const Matrix o = batch.attend(*ops, cache, {{0, 70, 5}});
    for (int32_t i = 0; i < 5; ++i) batch.expect_row(o(), i, 0, 70 + i);
  }
}

TEST_P(AttentionTest, slots_below_zero_are_not_stored) {
  const AttentionSpec spec = with_format({2, 2, 8});
  ThreadPool pool(1);
  const auto ops = checked_ops(act(), pool);
  const Cache cache = make_cache(*ops, 2, spec);
  const Matrix k = random_matrix(Dtype::f32, 3, 16, 1);
  std::vector<int32_t> slots{-1, 17, -7};
  ops->kv_write(cache.kv, k(), k(), view(slots.data(), Dtype::i32, {3}), spec);
  int64_t written = 0;
  for (const Tensor& t : {cache.kv.k, cache.kv.v}) {
    if (spec.kv == KvFormat::int8) {
      // Behind the 16 * 8 values of each block and head: the scales.
      for (int64_t i = 0; i < 2 * 2 * kBlockTokens; ++i) {
        const int64_t block = i / kBlockTokens * t.cols();
        const auto* scales = reinterpret_cast<const float*>(t.data + block + kBlockTokens * 8);
        written += std::isnan(scales[i % kBlockTokens]) ? 0 : 8;
      }
      continue;
    }
    const Tensor flat = view(t.data, t.dtype, {1, t.shape.size()});
    for (int64_t i = 0; i < flat.cols(); ++i) written += std::isnan(get(flat, 0, i)) ? 0 : 1;
  }
  EXPECT_EQ(written, 2 * 16);
}

INSTANTIATE_TEST_SUITE_P(Act, AttentionTest,
                         testing::Combine(testing::ValuesIn(kActs),
                                          testing::Values(KvFormat::act, KvFormat::int8)),
                         [](const auto& test) {
                           const bool int8 = std::get<1>(test.param) == KvFormat::int8;
                           return std::string(to_string(std::get<0>(test.param))) +
                                  (int8 ? "_kv_int8" : "");
                         });

// With V the largest value, K the largest key element and |q| the sum of a query's magnitudes:
// values are off by V / 254 at most and so is their mean; scores by delta = |q| K / 254 / sqrt(d),
// probabilities by a factor within e^(2 delta), and the mean by (e^(2 delta) - 1) V for that.
TEST(AttentionInt8, is_within_the_derived_bound_of_keys_and_values_in_f32) {
  for (const int32_t d : {16, 64, 128, 256}) {
    for (const int32_t window : {0, 50}) {
      AttentionSpec spec{4, 2, d, window};
      const int32_t n = 400;
      const Batch batch(spec, {n}, 1300);
      ThreadPool pool(2);
      const auto ops = checked_ops(Dtype::f32, pool);
      std::vector<Matrix> o;
      for (const KvFormat kv : {KvFormat::act, KvFormat::int8}) {
        AttentionSpec with = spec;
        with.kv = kv;
        const Batch same(with, {n}, 1300);
        const Cache cache = make_cache(*ops, same.blocks(), with);
        same.store(*ops, cache, 0, 0, n);
        o.push_back(same.attend(*ops, cache, {{0, 0, n}}));
      }
      const Sequence& s = batch.sequence(0);
      const auto largest = [](const Tensor& t) {
        double most = 0;
        for (int64_t r = 0; r < t.rows(); ++r) {
          for (int64_t c = 0; c < t.cols(); ++c) most = std::max(most, std::abs(get(t, r, c)));
        }
        return most;
      };
      const double v = largest(s.v());
      const double k = largest(s.k());
      double error = 0;
      double size = 0;
      for (int32_t p = 0; p < n; ++p) {
        for (int32_t h = 0; h < 4; ++h) {
          double q = 0;
          for (int32_t i = 0; i < d; ++i) q += std::abs(get(s.q(), p, h * d + i));
          const double delta = q * k / 254 / std::sqrt(double{static_cast<double>(d)});
          const double bound = v / 254 + std::expm1(2 * delta) * v * (1 + 1.0 / 254) + 1e-5;
          for (int32_t i = 0; i < d; ++i) {
            const double exact = get(o[0](), p, h * d + i);
            const double off = get(o[1](), p, h * d + i) - exact;
            ASSERT_LE(std::abs(off), bound) << "position " << p << " head " << h;
            error += off * off;
            size += exact * exact;
          }
        }
      }
      // Far below the bound, which no error reaches at once: see docs/quantisation.md.
      EXPECT_LE(std::sqrt(error / size), 0.015) << d << " window " << window;
      RecordProperty("rms_" + std::to_string(d) + "_" + std::to_string(window),
                     std::to_string(std::sqrt(error / size)));
    }
  }
}

// A head of a token that is not finite is NaN to whoever sees it, and to nobody else.
TEST(AttentionInt8, what_is_not_finite_stays_so_and_zeros_stay_zero) {
  AttentionSpec spec{1, 1, 16};
  spec.kv = KvFormat::int8;
  ThreadPool pool(1);
  const auto ops = checked_ops(Dtype::f32, pool);
  const Cache cache = make_cache(*ops, 1, spec);
  const Matrix zero(Dtype::f32, 3, 16);
  for (int64_t r = 0; r < 3; ++r) std::fill_n(zero().row<float>(r), 16, 0.0F);
  zero().row<float>(2)[5] = std::numeric_limits<float>::infinity();
  std::vector<int32_t> slots{0, 1, 2};
  ops->kv_write(cache.kv, zero(), zero(), view(slots.data(), Dtype::i32, {3}), spec);
  const Matrix q = random_matrix(Dtype::f32, 3, 16, 3);
  Matrix o(Dtype::f32, 3, 16);
  const std::vector<int32_t> begin{0, 3}, length{3}, table{0};
  const Buffer scratch(ops->attention_scratch_bytes(3, spec));
  const auto bytes = static_cast<int64_t>(scratch.size());
  ops->attention(o(), q(), cache.kv,
                 {begin, length, table, 1, view(scratch.data(), Dtype::u8, {bytes})}, spec);
  for (int64_t i = 0; i < 16; ++i) {
    EXPECT_EQ(get(o(), 0, i), 0);
    EXPECT_EQ(get(o(), 1, i), 0);
    EXPECT_TRUE(std::isnan(get(o(), 2, i)));
  }
}

}  // namespace
}  // namespace lorry::test
