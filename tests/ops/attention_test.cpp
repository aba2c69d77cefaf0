// Paged attention against softmax(q k^T / sqrt(d)) v in double, and its invariances.
#include <tuple>

#include <gtest/gtest.h>

#include "ops/attention_batch.h"

namespace lorry::test {
namespace {

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
    const AttentionBatch batch(c.spec, c.lengths, seed += 100);
    Matrix o(act(), 1, 1);
    const auto attend = [&](Ops& ops) {
      const AttentionCache cache = make_cache(ops, batch.blocks(), c.spec);
      std::vector<AttentionBatch::Range> ranges;
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
    const AttentionBatch batch(spec, {270, 40}, 900);
    ThreadPool pool(3);
    const auto ops = checked_ops(act(), pool);
    Bytes whole;
    for (const int32_t chunk : {270, 1, 16, 37, 100}) {
      const AttentionCache cache = make_cache(*ops, batch.blocks(), spec);
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
  const AttentionBatch batch(spec, {9000, 1100}, 1000);
  Bytes first;
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    const auto ops = checked_ops(act(), pool);
    const AttentionCache cache = make_cache(*ops, batch.blocks(), spec);
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
  const AttentionBatch batch(spec, {75}, 1100);
  for (const Variant& v : variants()) {
    ThreadPool pool(2);
    const auto ops = checked_ops(act(), pool, v);
    const AttentionCache cache = make_cache(*ops, batch.blocks(), spec);
    batch.store(*ops, cache, 0, 70 - 19, 75 - (70 - 19));
    const Matrix o = batch.attend(*ops, cache, {{0, 70, 5}});
    for (int32_t i = 0; i < 5; ++i) batch.expect_row(o(), i, 0, 70 + i);
  }
}

TEST_P(AttentionTest, slots_below_zero_are_not_stored) {
  const AttentionSpec spec = with_format({2, 2, 8});
  ThreadPool pool(1);
  const auto ops = checked_ops(act(), pool);
  const AttentionCache cache = make_cache(*ops, 2, spec);
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

}  // namespace
}  // namespace lorry::test
