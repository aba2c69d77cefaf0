// apply_glu without adapters: kernels that end with the activation give the bits of linear and glu.
#include <gtest/gtest.h>

#include "ops/quant_support.h"

namespace lorry::test {
namespace {

class GluTest : public testing::TestWithParam<WeightFormat> {};

// Scratch as a step has it; begin: of groups of rows.
void expect_same_bits(Ops& ops, const Weight& w, int64_t cols, const std::vector<int32_t>& begin,
                      Activation activation) {
  const int64_t n = begin.back();
  const Matrix x = random_matrix(Dtype::bf16, n, w.in, 3);
  const Matrix both(Dtype::f32, n, w.out);
  const Matrix expected(Dtype::bf16, n, cols);
  Bytes memory(ops.linear_scratch_bytes(n, w.in));
  const Tensor scratch = view(memory.data(), Dtype::u8, {static_cast<int64_t>(memory.size())});
  ops.linear(both(), x(), w, {begin}, scratch);
  ops.glu(expected(), both(), activation);
  for (const int64_t extra : {0, 3}) {
    const Matrix y(Dtype::bf16, n, cols, extra);
    ops.apply_glu(y(), both(), x(), {w, {begin}, {}, {}, {}, scratch, {}}, activation);
    EXPECT_TRUE(bytes_of(y()) == bytes_of(expected()))
        << n << " rows, " << cols << " columns, " << extra << " between rows";
    for (int64_t r = 0; r < n; ++r) {
      for (int64_t i = 0; i < extra; ++i) {
        ASSERT_TRUE(std::isnan(to_float(y().row<bf16>(r)[cols + i])));
      }
    }
  }
}

TEST_P(GluTest, apply_glu_has_the_bits_of_linear_and_glu) {
  constexpr int64_t kIn = 300;
  constexpr unsigned kGroups = 4;
  ThreadPool pool(2);
  const auto ops = checked_ops(Dtype::bf16, pool);
  for (const int64_t cols : {72, 200}) {
    const int64_t out = 2 * ((cols + 63) / 64 * 64);
    for (const unsigned groups : {1U, kGroups}) {
      Weight w = ops->weight_layout(groups, out, kIn, GetParam());
      Buffer buffer(static_cast<size_t>(w.groups * w.group_bytes));
      w.data = buffer.data();
      for (unsigned g = 0; g < groups; ++g) {
        ops->pack(w, g, 0, random_matrix(Dtype::f32, out, kIn, 50 + g, 0.1)());
      }
      for (const int32_t n : {1, 3, 9, 20, 40, 70, 140, 280}) {
        const std::vector<int32_t> uneven{0, n / 8, n / 8, n - n / 3, n};
        const std::vector<int32_t> begin = groups == 1 ? std::vector<int32_t>{0, n} : uneven;
        expect_same_bits(*ops, w, cols, begin, static_cast<Activation>(n % 3));
      }
    }
  }
}

// More scales than are summed at once, all of whole units.
TEST_P(GluTest, apply_glu_of_many_inputs_has_the_bits_of_linear_and_glu) {
  constexpr int64_t kIn = 2432;
  constexpr int64_t kOut = 128;
  ThreadPool pool(2);
  for (const Variant& v : variants()) {
    const auto ops = checked_ops(Dtype::bf16, pool, v);
    Weight w = ops->weight_layout(2, kOut, kIn, GetParam());
    Buffer buffer(static_cast<size_t>(w.groups * w.group_bytes));
    w.data = buffer.data();
    for (unsigned g = 0; g < 2; ++g) {
      ops->pack(w, g, 0, random_matrix(Dtype::f32, kOut, kIn, 60 + g, 0.1)());
    }
    for (const auto& [first, n] : {std::pair{0, 1}, {1, 4}, {6, 14}, {17, 20}}) {
      expect_same_bits(*ops, w, 40, {0, first, n}, static_cast<Activation>(n % 3));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, GluTest,
                         testing::Values(WeightFormat{}, WeightFormat{Kind::fp8, 0, false},
                                         WeightFormat{Kind::int8, 0, false},
                                         WeightFormat{Kind::int4, 128, false}),
                         [](const auto& test) {
                           return test.param.plain() ? "plain" : name_of(test.param);
                         });

}  // namespace
}  // namespace lorry::test
