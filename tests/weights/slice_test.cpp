#include "weights/slice.h"

#include <cstdint>
#include <vector>

#include <gtest/gtest.h>

#include "base/float16.h"

namespace lorry {
namespace {

// 0, 1, 2, … in a dense matrix.
struct Counting {
  Counting(int64_t n_rows, int64_t n_cols) : data(static_cast<size_t>(n_rows * n_cols)) {
    for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<float>(i);
    tensor = view(data.data(), Dtype::f32, {n_rows, n_cols});
  }
  std::vector<float> data;
  Tensor tensor;
};

TEST(Slice, a_range_of_rows_and_columns) {
  Counting src(5, 7);
  std::vector<float> out(6, -1.0F);
  copy(view(out.data(), Dtype::f32, {2, 3}), columns(rows(src.tensor, 3, 2), 1, 3));
  EXPECT_EQ(out, (std::vector<float>{22, 23, 24, 29, 30, 31}));
}

TEST(Slice, writes_nothing_between_the_rows_of_a_pitched_destination) {
  Counting src(2, 2);
  std::vector<float> out(8, -1.0F);
  copy(columns(view(out.data(), Dtype::f32, {2, 4}), 1, 2), src.tensor);
  EXPECT_EQ(out, (std::vector<float>{-1, 0, 1, -1, -1, 2, 3, -1}));
}

TEST(Slice, a_3d_tensor_counts_as_its_rows) {
  Counting src(6, 4);
  const Tensor experts = view(src.data.data(), Dtype::f32, {2, 3, 4});
  std::vector<float> out(8);
  copy(view(out.data(), Dtype::f32, {2, 4}), rows(experts, 4, 2));
  EXPECT_EQ(out.front(), 16.0F);
  EXPECT_EQ(out.back(), 23.0F);
}

TEST(Slice, transposes_sizes_that_do_not_fit_tiles) {
  for (const auto& [n_rows, n_cols] :
       std::vector<std::pair<int64_t, int64_t>>{{1, 1}, {1, 40}, {33, 65}, {64, 32}, {3, 0}}) {
    Counting src(n_rows, n_cols);
    std::vector<float> out(src.data.size(), -1.0F);
    const Tensor dst = view(out.data(), Dtype::f32, {n_cols, n_rows});
    copy_transposed(dst, src.tensor);
    for (int64_t r = 0; r < n_rows; ++r) {
      for (int64_t c = 0; c < n_cols; ++c) {
        ASSERT_EQ(dst.row<float>(c)[r], src.tensor.row<float>(r)[c]);
      }
    }
  }
}

TEST(Slice, transposes_a_range_into_a_range) {
  Counting src(5, 7);
  std::vector<float> out(12, -1.0F);
  copy_transposed(columns(view(out.data(), Dtype::f32, {3, 4}), 2, 2),
                  columns(rows(src.tensor, 1, 2), 4, 3));
  EXPECT_EQ(out, (std::vector<float>{-1, -1, 11, 18, -1, -1, 12, 19, -1, -1, 13, 20}));
}

TEST(Slice, sixteen_bit_values_move_bit_by_bit) {
  std::vector<uint16_t> in(65536);
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<uint16_t>(i);
  for (const Dtype dtype : {Dtype::f16, Dtype::bf16}) {
    std::vector<uint16_t> out(in.size());
    copy(view(out.data(), dtype, {256, 256}), view(in.data(), dtype, {256, 256}));
    EXPECT_EQ(out, in);
    std::vector<uint16_t> back(in.size());
    copy_transposed(view(out.data(), dtype, {256, 256}), view(in.data(), dtype, {256, 256}));
    copy_transposed(view(back.data(), dtype, {256, 256}), view(out.data(), dtype, {256, 256}));
    EXPECT_EQ(out[1], 256);
    EXPECT_EQ(back, in);
  }
}

TEST(Slice, float_types_are_converted_to_nearest_even) {
  std::vector<float> in{1.0F, 1.00390625F, 1.01171875F, -3.0e-6F};
  std::vector<uint16_t> b(4);
  std::vector<uint16_t> h(4);
  const Tensor src = view(in.data(), Dtype::f32, {2, 2});
  copy(view(b.data(), Dtype::bf16, {2, 2}), src);
  copy_transposed(view(h.data(), Dtype::f16, {2, 2}), src);
  EXPECT_EQ(b[0], 0x3f80);
  EXPECT_EQ(b[1], 0x3f80);  // half way: down to even
  EXPECT_EQ(b[2], 0x3f82);  // half way: up to even
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(b[i], to_bf16(in[i]).bits);
    EXPECT_EQ(h[i / 2 + i % 2 * 2], to_f16(in[i]).bits);
  }
  std::vector<float> wide(4);
  copy(view(wide.data(), Dtype::f32, {2, 2}), view(b.data(), Dtype::bf16, {2, 2}));
  EXPECT_EQ(wide[2], 1.015625F);
  std::vector<uint16_t> again(4);
  copy(view(again.data(), Dtype::bf16, {2, 2}), view(h.data(), Dtype::f16, {2, 2}));
  EXPECT_EQ(again[0], 0x3f80);
}

TEST(Slice, integers_move_but_are_not_converted) {
  std::vector<int64_t> in{1, 2, 3, 4};
  std::vector<int64_t> out(4);
  copy_transposed(view(out.data(), Dtype::i64, {2, 2}), view(in.data(), Dtype::i64, {2, 2}));
  EXPECT_EQ(out, (std::vector<int64_t>{1, 3, 2, 4}));
  std::vector<float> f(4);
  EXPECT_DEATH(copy(view(f.data(), Dtype::f32, {2, 2}), view(in.data(), Dtype::i64, {2, 2})),
               "I64 is not converted");
}

TEST(SliceDeathTest, sizes_that_differ_are_a_programmers_error) {
  Counting a(2, 3);
  Counting b(3, 2);
  EXPECT_DEATH(copy(a.tensor, b.tensor), "\\[2, 3\\] from \\[3, 2\\]");
  EXPECT_DEATH(copy_transposed(a.tensor, a.tensor), "transposed");
}

}  // namespace
}  // namespace lorry
