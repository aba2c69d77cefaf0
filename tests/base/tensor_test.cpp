#include "lorry/tensor.h"

#include <vector>

#include <gtest/gtest.h>

namespace lorry {
namespace {

TEST(Tensor, rows_and_columns_are_views_of_the_same_memory) {
  std::vector<float> data(12);
  for (size_t i = 0; i < 12; ++i) data[i] = static_cast<float>(i);
  const Tensor t = view(data.data(), Dtype::f32, {3, 4});
  const Tensor part = columns(rows(t, 1, 2), 2, 2);
  EXPECT_EQ(part.shape, (Shape{2, 2}));
  EXPECT_EQ(part.pitch, 4);
  EXPECT_EQ(part.row<float>(0)[0], 6.0F);
  EXPECT_EQ(part.row<float>(1)[1], 11.0F);
}

TEST(Tensor, rows_of_a_3d_tensor_are_those_of_the_flattened_matrix) {
  std::vector<float> data(24);
  const Tensor t = view(data.data(), Dtype::f32, {2, 3, 4});
  EXPECT_EQ(t.rows(), 6);
  EXPECT_EQ(t.cols(), 4);
  EXPECT_EQ(rows(t, 3, 3).row<float>(0), data.data() + 12);
}

TEST(Tensor, scalars_vectors_and_empty_dimensions_have_counts) {
  float x = 0;
  const Tensor scalar = view(&x, Dtype::f32, {});
  EXPECT_EQ(scalar.rows(), 1);
  EXPECT_EQ(scalar.cols(), 1);
  EXPECT_EQ(scalar.pitch, 1);
  EXPECT_EQ(view(&x, Dtype::f32, {1}).rows(), 1);
  EXPECT_EQ(view(&x, Dtype::f32, {5, 0}).rows(), 5);
  EXPECT_EQ(view(&x, Dtype::f32, {0, 5}).rows(), 0);
}

TEST(Tensor, shapes_print_compare_and_count_from_the_end) {
  const Shape s{2, 3, 4};
  EXPECT_EQ(to_string(s), "[2, 3, 4]");
  EXPECT_EQ(to_string(Shape{}), "[]");
  EXPECT_EQ(s[-1], 4);
  EXPECT_EQ(s[0], 2);
  EXPECT_EQ(s.size(), 24);
  EXPECT_NE((Shape{3}), (Shape{3, 1}));
  EXPECT_STREQ(to_string(Dtype::bf16), "BF16");
}

}  // namespace
}  // namespace lorry
