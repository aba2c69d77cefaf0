// bf16 linears on AMX tiles: equal, bit for bit, to the order of sums that kernels_amx.cpp states.
#include <bit>

#include <gtest/gtest.h>

#include "ops/checked_ops.h"
#include "ops/cpu/cpu_ops.h"
#include "ops/support.h"

namespace lorry::test {
namespace {

class AmxTest : public testing::Test {
 protected:
  void SetUp() override {
    const std::vector<Isa> isas = usable_isas();
    if (std::find(isas.begin(), isas.end(), Isa::amx) == isas.end()) {
      GTEST_SKIP() << "this processor has no AMX";
    }
  }
};

float flushed(float x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0F, x) : x; }

// c + the products of 32 k, as the tile product TDPBF16PS of Intel's manual takes them.
float tile_product(float c, const Tensor& x, int64_t r, const Tensor& w, int64_t o, int64_t k) {
  float sum[2] = {0, 0};
  for (int64_t i = k; i < std::min(k + 32, x.cols()); ++i) {
    const auto a = flushed(static_cast<float>(get(x, r, i)));
    const auto b = flushed(static_cast<float>(get(w, o, i)));
    sum[i % 2] = flushed(std::fma(a, b, sum[i % 2]));
  }
  return flushed(c + flushed(sum[0] + sum[1]));
}

void expect_tiles(const Tensor& y, const Tensor& x, const Tensor& w) {
  for (int64_t r = 0; r < x.rows(); ++r) {
    for (int64_t o = 0; o < w.rows(); ++o) {
      float sum = 0;
      for (int64_t k = 0; k < x.cols(); k += 32) sum = tile_product(sum, x, r, w, o, k);
      ASSERT_EQ(std::bit_cast<uint32_t>(y.row<float>(r)[o]), std::bit_cast<uint32_t>(sum))
          << "row " << r << " of " << x.rows() << ", output " << o << " of " << w.rows();
    }
  }
}

TEST_F(AmxTest, sums_in_the_order_of_the_tiles_for_every_shape) {
  ThreadPool pool(2);
  const auto ops = make_checked_ops(make_cpu_ops(Dtype::bf16, pool, Isa::amx));
  unsigned seed = 1;
  for (const int64_t rows :
       {1, 2, 15, 16, 17, 31, 32, 33, 48, 49, 64, 96, 145, 200, 288, 289, 450}) {
    for (const auto& [out, in] : {std::pair{64, 64}, {1, 1}, {130, 33}, {97, 31}, {33, 160}}) {
      const Matrix x = random_matrix(Dtype::bf16, rows, in, ++seed);
      const Matrix w = random_matrix(Dtype::bf16, out, in, ++seed);
      const Matrix y(Dtype::f32, rows, out, 5);
      const PackedWeight packed(*ops, {w()}, out, in);
      const std::vector<int32_t> begin{0, static_cast<int32_t>(rows)};
      ops->linear(y(), x(), packed(), {begin}, {});
      ASSERT_NO_FATAL_FAILURE(expect_tiles(y(), x(), w()));
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t i = 0; i < 5; ++i) ASSERT_TRUE(std::isnan(y().row<float>(r)[out + i]));
      }
    }
  }
}

TEST_F(AmxTest, denormals_are_zero) {
  ThreadPool pool(1);
  const auto ops = make_checked_ops(make_cpu_ops(Dtype::bf16, pool, Isa::amx));
  const Matrix x(Dtype::bf16, 3, 40);
  const Matrix w(Dtype::bf16, 66, 40);
  std::mt19937 random(5);
  for (const Matrix* m : {&x, &w}) {
    for (int64_t r = 0; r < (*m)().rows(); ++r) {
      for (int64_t c = 0; c < 40; ++c) {
        // Around 2^-63 in both, so that products are about as small as a float can be.
        const uint32_t exponent = 55 + static_cast<uint32_t>(random() % 20);
        const uint32_t bits = (random() & 0x807fffffU) | (random() % 8 == 0 ? 0 : exponent << 23);
        set((*m)(), r, c, double{std::bit_cast<float>(bits)});
      }
    }
  }
  const Matrix y(Dtype::f32, 3, 66);
  const PackedWeight packed(*ops, {w()}, 66, 40);
  const std::vector<int32_t> begin{0, 3};
  ops->linear(y(), x(), packed(), {begin}, {});
  expect_tiles(y(), x(), w());
}

}  // namespace
}  // namespace lorry::test
