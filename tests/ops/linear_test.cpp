// Linears and the packing of their weights.
#include <gtest/gtest.h>

#include "ops/support.h"

namespace lorry::test {
namespace {

class LinearTest : public testing::TestWithParam<Dtype> {};

// y, from what is stored in x and rounded in w, in double; and its error bound.
void expect_linear(const Tensor& y, const Tensor& x, const Tensor& w, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    for (int64_t o = 0; o < w.rows(); ++o) {
      double sum = 0;
      double size = 0;
      for (int64_t k = 0; k < w.cols(); ++k) {
        const double product = get(x, r, k) * rounded(x.dtype, get(w, o, k));
        sum += product;
        size += std::abs(product);
      }
      ASSERT_NEAR(get(y, r, o), sum, 1e-6 * size + 1e-30) << "row " << r << " output " << o;
    }
  }
}

TEST_P(LinearTest, equals_the_reference_on_every_instruction_set) {
  struct Case {
    int64_t rows, out, in;
  };
  unsigned seed = 1;
  for (const Case& c : {Case{1, 64, 64}, Case{1, 1, 1}, Case{2, 65, 3}, Case{3, 130, 17},
                        Case{5, 16, 33}, Case{6, 128, 40}, Case{7, 63, 50}, Case{8, 100, 31},
                        Case{13, 48, 128}, Case{25, 70, 20}, Case{31, 64, 9}}) {
    SCOPED_TRACE(testing::Message() << c.rows << " x [" << c.out << ", " << c.in << "]");
    const Matrix x = random_matrix(GetParam(), c.rows, c.in, ++seed);
    const Matrix w = random_matrix(Dtype::f32, c.out, c.in, ++seed);
    Matrix y(Dtype::f32, c.rows, c.out, 5);
    const std::vector<int32_t> begin{0, static_cast<int32_t>(c.rows)};
    same_everywhere(GetParam(), [&](Ops& ops) {
      fill(y(), 0);
      const PackedWeight packed(ops, {w()}, c.out, c.in);
      run_linear(ops, y(), x(), packed(), begin);
      return bytes_of(y());
    });
    expect_linear(y(), x(), w(), 0, c.rows);
    // Nothing was written between the rows.
    for (int64_t r = 0; r < c.rows; ++r) {
      for (int64_t i = 0; i < 5; ++i) ASSERT_TRUE(std::isnan(y().row<float>(r)[c.out + i]));
    }
  }
}

TEST_P(LinearTest, long_rows_and_many_rows_equal_the_reference) {
  ThreadPool pool(2);
  const auto ops = checked_ops(GetParam(), pool);
  // More k than one part of a panel, more rows than one block.
  const Matrix x = random_matrix(GetParam(), 200, 2501, 3);
  const Matrix w = random_matrix(Dtype::f32, 66, 2501, 4);
  const Matrix y(Dtype::f32, 200, 66);
  const PackedWeight packed(*ops, {w()}, 66, 2501);
  const std::vector<int32_t> begin{0, 200};
  run_linear(*ops, y(), x(), packed(), begin);
  expect_linear(y(), x(), w(), 0, 200);
}

TEST_P(LinearTest, each_group_uses_its_own_weights) {
  const std::vector<int32_t> begin{0, 0, 3, 3, 10, 11, 11};
  std::vector<Matrix> w;
  std::vector<Tensor> views;
  for (unsigned g = 0; g < 6; ++g) w.push_back(random_matrix(Dtype::f32, 72, 34, 100 + g));
  for (const Matrix& m : w) views.push_back(m());
  const Matrix x = random_matrix(GetParam(), 11, 34, 7);
  const Matrix y(Dtype::f32, 11, 72);
  same_everywhere(GetParam(), [&](Ops& ops) {
    const PackedWeight packed(ops, views, 72, 34);
    run_linear(ops, y(), x(), packed(), begin);
    return bytes_of(y());
  });
  for (size_t g = 0; g < 6; ++g) {
    expect_linear(y(), x(), views[g], begin[g], begin[g + 1]);
  }
}

// As many rows as the kernels for prompts are made for, and a group that has most of them.
TEST_P(LinearTest, groups_of_many_rows_use_their_own_weights) {
  constexpr int64_t kOut = 136;
  constexpr int64_t kIn = 300;
  std::vector<Matrix> w;
  std::vector<Tensor> views;
  for (unsigned g = 0; g < 4; ++g) w.push_back(random_matrix(Dtype::f32, kOut, kIn, 200 + g));
  for (const Matrix& m : w) views.push_back(m());
  ThreadPool pool(2);
  const auto ops = checked_ops(GetParam(), pool);
  const PackedWeight packed(*ops, views, kOut, kIn);
  for (const int32_t n : {40, 110, 200, 300}) {
    SCOPED_TRACE(n);
    const std::vector<int32_t> begin{0, 0, n / 4, n / 4 + 1, n};
    const Matrix x = random_matrix(GetParam(), n, kIn, 7);
    const Matrix y(Dtype::f32, n, kOut);
    run_linear(*ops, y(), x(), packed(), begin);
    for (size_t g = 0; g < 4; ++g) expect_linear(y(), x(), views[g], begin[g], begin[g + 1]);
  }
}

TEST_P(LinearTest, a_row_has_the_same_bits_alone_and_among_others) {
  for (const Variant& v : variants()) {
    ThreadPool pool(2);
    const auto ops = checked_ops(GetParam(), pool, v);
    const int64_t in = v.slow ? 201 : 4111;
    const Matrix x = random_matrix(GetParam(), 300, in, 8);
    const Matrix w = random_matrix(Dtype::f32, 80, in, 9);
    const PackedWeight packed(*ops, {w()}, 80, in);
    const Matrix alone(Dtype::f32, 300, 80);
    for (int64_t r = 0; r < 64; ++r) {
      const std::vector<int32_t> begin{0, 1};
      run_linear(*ops, rows(alone(), r, 1), rows(x(), r, 1), packed(), begin);
    }
    for (const int32_t n : {2, 7, 24, 64, 100, 300}) {
      const Matrix y(Dtype::f32, n, 80);
      const std::vector<int32_t> begin{0, n};
      const int64_t same = std::min(n, 64);
      run_linear(*ops, y(), rows(x(), 0, n), packed(), begin);
      EXPECT_TRUE(bytes_of(rows(y(), 0, same)) == bytes_of(rows(alone(), 0, same)))
          << v.name << ", " << n << " rows";
      fill(y(), 0);
      ops->linear(y(), rows(x(), 0, n), packed(), {begin}, {});
      EXPECT_TRUE(bytes_of(rows(y(), 0, same)) == bytes_of(rows(alone(), 0, same)))
          << v.name << ", " << n << " rows, without scratch";
    }
  }
}

// Groups of as many rows as come, at any row: what a row gets is what it gets alone.
TEST_P(LinearTest, rows_of_uneven_groups_have_the_bits_that_they_have_alone) {
  constexpr int64_t kOut = 200;
  const std::vector<int32_t> sizes{0, 1, 7, 130, 257, 0, 300, 64, 180};
  std::vector<int32_t> begin{0};
  for (const int32_t n : sizes) begin.push_back(begin.back() + n);
  const auto groups = static_cast<unsigned>(sizes.size());
  for (const int64_t in : {40, 610}) {
    SCOPED_TRACE(in);
    std::vector<Matrix> w;
    std::vector<Tensor> views;
    for (unsigned g = 0; g < groups; ++g) w.push_back(random_matrix(Dtype::f32, kOut, in, 300 + g));
    for (const Matrix& m : w) views.push_back(m());
    ThreadPool pool(2);
    const auto ops = checked_ops(GetParam(), pool);
    const PackedWeight packed(*ops, views, kOut, in);
    const Matrix x = random_matrix(GetParam(), begin.back(), in, 7, 3);
    const Matrix y(Dtype::f32, begin.back(), kOut, 5);
    run_linear(*ops, y(), x(), packed(), begin);
    const Matrix alone(Dtype::f32, 1, kOut);
    for (int32_t r = 0; r < begin.back(); r += r % 32 == 1 ? 31 : 1) {
      std::vector<int32_t> one{0};
      for (size_t g = 0; g < groups; ++g) one.push_back(begin[g + 1] > r ? 1 : 0);
      run_linear(*ops, alone(), rows(x(), r, 1), packed(), one);
      ASSERT_TRUE(bytes_of(rows(y(), r, 1)) == bytes_of(alone())) << "row " << r;
    }
  }
}

TEST_P(LinearTest, extreme_values_have_the_same_bits_on_every_instruction_set) {
  // All exponents: sums that overflow, cancel and become denormal, and denormal weights.
  std::mt19937 random(10);
  Matrix x(GetParam(), 5, 64);
  Matrix w(GetParam(), 192, 64);
  for (const Matrix* m : {&x, &w}) {
    for (int64_t r = 0; r < (*m)().rows(); ++r) {
      const int low = std::uniform_int_distribution<int>(0, 200)(random);
      for (int64_t c = 0; c < 64; ++c) {
        const auto exponent =
            static_cast<uint32_t>(low + std::uniform_int_distribution<int>(0, 40)(random));
        const uint32_t bits = (random() & 0x807fffffU) | (exponent << 23);
        set((*m)(), r, c, double{std::bit_cast<float>(bits)});
      }
    }
  }
  const Matrix y(Dtype::f32, 5, 192);
  const std::vector<int32_t> begin{0, 5};
  same_everywhere(GetParam(), [&](Ops& ops) {
    const PackedWeight packed(ops, {w()}, 192, 64);
    run_linear(ops, y(), x(), packed(), begin);
    // Which NaN it is (infinity - infinity) is the processor's choice.
    for (int64_t r = 0; r < 5; ++r) {
      for (int64_t c = 0; c < 192; ++c) {
        if (std::isnan(get(y(), r, c))) set(y(), r, c, 12345.0);
      }
    }
    return bytes_of(y());
  });
}

TEST_P(LinearTest, packs_from_each_source_type) {
  ThreadPool pool(1);
  const auto ops = checked_ops(GetParam(), pool);
  const Matrix half(Dtype::f16, 70, 21);
  std::mt19937 random(11);
  for (int64_t r = 0; r < 70; ++r) {
    for (int64_t c = 0; c < 21; ++c) {
      half().row<f16>(r)[c] = {static_cast<uint16_t>(random() % 0x4000 + (random() % 2 << 15))};
    }
  }
  const Matrix wide = random_matrix(Dtype::bf16, 70, 21, 12);
  const Matrix x = random_matrix(GetParam(), 4, 21, 13);
  const Matrix y(Dtype::f32, 4, 70);
  const std::vector<int32_t> begin{0, 4};
  for (const Tensor& w : {half(), wide()}) {
    const PackedWeight packed(*ops, {w}, 70, 21);
    run_linear(*ops, y(), x(), packed(), begin);
    expect_linear(y(), x(), w, 0, 4);
  }
}

TEST(CheckedLinear, wrong_shapes_abort) {
  ThreadPool pool(1);
  const auto ops = checked_ops(Dtype::f32, pool);
  const Matrix w = random_matrix(Dtype::f32, 8, 8, 1);
  const PackedWeight packed(*ops, {w()}, 8, 8);
  const Matrix x = random_matrix(Dtype::f32, 2, 9, 1);
  const Matrix y(Dtype::f32, 2, 8);
  const std::vector<int32_t> begin{0, 2};
  EXPECT_DEATH(ops->linear(y(), x(), packed(), {begin}, {}),
               "x: F32 \\[2, 9\\], expected F32 \\[2, 8\\]");
  const std::vector<int32_t> short_begin{0, 1};
  EXPECT_DEATH(ops->linear(y(), columns(x(), 0, 8), packed(), {short_begin}, {}),
               "expected 1 of 2");
}

INSTANTIATE_TEST_SUITE_P(Act, LinearTest, testing::ValuesIn(kActs),
                         [](const auto& test) { return to_string(test.param); });

}  // namespace
}  // namespace lorry::test
