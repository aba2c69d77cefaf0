// Rows of scores: the largest and the sum of exponentials, with every instruction set.
#include "ops/scores.h"

#include <cmath>
#include <limits>
#include <random>
#include <span>
#include <vector>

#include <gtest/gtest.h>

#include "ops/cpu/isa.h"

namespace lorry::test {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr size_t kLengths[] = {0, 1, 15, 16, 17, 63, 64, 65, 1000, 1024, 1025, 32000};

std::vector<float> random_row(size_t n, double scale = 4.0) {
  std::mt19937 random(static_cast<uint32_t>(n));
  std::normal_distribution<double> normal(0.0, scale);
  std::vector<float> x(n);
  for (float& v : x) v = static_cast<float>(normal(random));
  return x;
}

int64_t plain_arg_max(std::span<const float> x) {
  int64_t best = -1;
  for (size_t i = 0; i < x.size(); ++i) {
    if (std::isnan(x[i]) || x[i] == kInf) return -1;
    if (x[i] > (best < 0 ? -kInf : x[static_cast<size_t>(best)])) best = static_cast<int64_t>(i);
  }
  return best;
}

// What stands behind the row must not be looked at.
void check_arg_max(std::vector<float> x) {
  const int64_t expected = plain_arg_max(x);
  const auto n = static_cast<int64_t>(x.size());
  x.resize(x.size() + 64, kNaN);
  for (const Isa isa : usable_isas()) {
    EXPECT_EQ(cpu::kernels_of(isa).arg_max(x.data(), n), expected) << to_string(isa) << " " << n;
  }
  EXPECT_EQ(arg_max(std::span(x).first(static_cast<size_t>(n))), expected) << n;
}

// Places of a row of n in which something is put.
std::vector<size_t> places(size_t n) {
  std::vector<size_t> at;
  for (const size_t i : {size_t{0}, size_t{16}, size_t{70}, n / 2, n - 2, n - 1}) {
    if (i < n) at.push_back(i);
  }
  return at;
}

TEST(Scores, arg_max_is_the_first_of_the_largest) {
  for (const size_t n : kLengths) {
    const std::vector<float> row = random_row(n);
    check_arg_max(row);
    check_arg_max(std::vector<float>(n, -7.0F));
    check_arg_max(std::vector<float>(n, -3e38F));
    for (const size_t first : places(n)) {
      for (const size_t second : places(n)) {
        std::vector<float> x = row;
        x[first] = x[second] = 50.0F;
        check_arg_max(x);
      }
      // In front of the same value at every place.
      std::vector<float> x(n, -1.0F);
      x[first] = 0.0F;
      check_arg_max(x);
    }
  }
}

TEST(Scores, arg_max_of_masked_rows) {
  for (const size_t n : kLengths) {
    check_arg_max(std::vector<float>(n, -kInf));
    for (const size_t only : places(n)) {
      std::vector<float> x(n, -kInf);
      x[only] = -3e38F;
      check_arg_max(x);
    }
  }
}

TEST(Scores, arg_max_tells_numbers_too_small_for_normal_ones_apart) {
  std::vector<float> x(100, 1e-40F);
  x[37] = 2e-40F;
  check_arg_max(x);
  for (float& v : x) v = -v;
  check_arg_max(x);
}

TEST(Scores, E14_nan_or_infinity_anywhere_leaves_no_largest) {
  for (const size_t n : kLengths) {
    for (const float bad : {kNaN, -kNaN, kInf}) {
      for (const size_t at : places(n)) {
        for (std::vector<float> x : {random_row(n), std::vector<float>(n, -kInf)}) {
          x[at] = bad;
          check_arg_max(x);
          const double sum = log_sum_exp(x);
          EXPECT_TRUE(std::isnan(bad) ? std::isnan(sum) : sum == double{kInf}) << sum;
          x[n / 2] = kInf;  // beside another
          x[at] = bad;
          EXPECT_EQ(arg_max(x), -1);
          EXPECT_EQ(std::isnan(log_sum_exp(x)), std::isnan(bad));
        }
      }
    }
  }
}

double plain_log_sum_exp(std::span<const float> x, double top) {
  double sum = 0;
  for (const float v : x) sum += std::exp(double{v} - top);
  return top + std::log(sum);
}

TEST(Scores, log_sum_exp_is_that_in_double_with_the_same_bits_everywhere) {
  for (const size_t n : kLengths) {
    if (n == 0) continue;
    for (const double scale : {0.0, 1e-3, 1.0, 4.0, 30.0, 1e30}) {
      std::vector<float> x = random_row(n, scale);
      if (n > 20) x[n - 3] = -kInf;
      const float top = x[static_cast<size_t>(plain_arg_max(x))];
      const double expected = plain_log_sum_exp(x, double{top});
      EXPECT_NEAR(log_sum_exp(x), expected, 1e-6 + 1e-7 * std::abs(expected)) << n << " " << scale;
      const auto size = static_cast<int64_t>(n);
      const double first = cpu::kernels_of(Isa::scalar).sum_exp(x.data(), top, size);
      for (const Isa isa : usable_isas()) {
        EXPECT_EQ(cpu::kernels_of(isa).sum_exp(x.data(), top, size), first)
            << to_string(isa) << " " << n << " " << scale;
      }
    }
  }
}

TEST(Scores, log_sum_exp_of_nothing_is_nothing) {
  EXPECT_EQ(log_sum_exp({}), -double{kInf});
  EXPECT_EQ(log_sum_exp(std::vector<float>(70, -kInf)), -double{kInf});
}

}  // namespace
}  // namespace lorry::test
