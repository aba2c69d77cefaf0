// Keys and values in int8 beside those in f32.
#include <limits>

#include <gtest/gtest.h>

#include "ops/attention_batch.h"

namespace lorry::test {
namespace {

// With V the largest value, K the largest key element and |q| the sum of a query's magnitudes:
// values are off by V / 254 at most and so is their mean; scores by delta = |q| K / 254 / sqrt(d),
// probabilities by a factor within e^(2 delta), and the mean by (e^(2 delta) - 1) V for that.
TEST(AttentionInt8, is_within_the_derived_bound_of_keys_and_values_in_f32) {
  for (const int32_t d : {16, 64, 128, 256}) {
    for (const int32_t window : {0, 50}) {
      AttentionSpec spec{4, 2, d, window};
      const int32_t n = 400;
      const AttentionBatch batch(spec, {n}, 1300);
      ThreadPool pool(2);
      const auto ops = checked_ops(Dtype::f32, pool);
      std::vector<Matrix> o;
      for (const KvFormat kv : {KvFormat::act, KvFormat::int8}) {
        AttentionSpec with = spec;
        with.kv = kv;
        const AttentionBatch same(with, {n}, 1300);
        const AttentionCache cache = make_cache(*ops, same.blocks(), with);
        same.store(*ops, cache, 0, 0, n);
        o.push_back(same.attend(*ops, cache, {{0, 0, n}}));
      }
      const AttentionSequence& s = batch.sequence(0);
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
  const AttentionCache cache = make_cache(*ops, 1, spec);
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
