// The arithmetic of merging against the formulas of PEFT's utils/merge_utils.py, written out here.
#include "adapters/merge_math.h"

#include <cmath>
#include <numeric>
#include <random>

#include <gtest/gtest.h>

namespace lorry {
namespace {

std::vector<float> noise(size_t n, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> x(n);
  for (float& v : x) v = normal(random);
  return x;
}

TEST(KeepLargest, keeps_the_share_of_largest_magnitude_and_of_equal_ones_the_first) {
  std::vector<float> x{1, -3, 2, 2, -2, 0.5F};
  keep_largest(x, 0.5);
  EXPECT_EQ(x, (std::vector<float>{0, -3, 2, 2, 0, 0}));
  std::vector<float> one{1, -3, 2, 2, -2, 0.5F};
  keep_largest(one, 0.33);  // 1.98 of 6 values: one
  EXPECT_EQ(one, (std::vector<float>{0, -3, 0, 0, 0, 0}));
  std::vector<float> none{1, 2};
  keep_largest(none, 0.4);
  EXPECT_EQ(none, (std::vector<float>{0, 0}));
  std::vector<float> all{1, 2};
  keep_largest(all, 1);
  EXPECT_EQ(all, (std::vector<float>{1, 2}));
}

TEST(SplitMix64, gives_the_published_numbers) {
  EXPECT_EQ(splitmix64(1234567, 0), 6457827717110365317U);
  EXPECT_EQ(splitmix64(1234567, 1), 3203168211198807973U);
  EXPECT_EQ(splitmix64(1234567, 2), 9817491932198370423U);
}

TEST(KeepRandom, keeps_each_value_with_the_probability_and_rescales_it) {
  const std::vector<float> x = noise(200000, 1);
  for (const double density : {0.1, 0.3, 0.9}) {
    std::vector<float> y = x;
    keep_random(y, density, 7);
    int64_t kept = 0, runs = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      if (y[i] == 0) continue;
      ASSERT_EQ(y[i], x[i] / static_cast<float>(density));
      ++kept;
      runs += i > 0 && y[i - 1] != 0 ? 1 : 0;
    }
    const auto n = static_cast<double>(x.size());
    // Five standard deviations.
    EXPECT_NEAR(static_cast<double>(kept) / n, density, 5 * std::sqrt(density * (1 - density) / n));
    EXPECT_NEAR(static_cast<double>(runs) / n, density * density, 0.006) << "neighbours";
  }
}

TEST(KeepRandom, follows_from_key_and_index_alone) {
  const std::vector<float> x(1000, 1.0F);
  std::vector<float> a = x, b = x, c = x, head(x.begin(), x.begin() + 10);
  keep_random(a, 0.5, 1);
  keep_random(b, 0.5, 1);
  keep_random(c, 0.5, 2);
  keep_random(head, 0.5, 1);
  EXPECT_EQ(a, b);
  EXPECT_NE(a, c);
  EXPECT_TRUE(std::equal(head.begin(), head.end(), a.begin()));
  std::vector<float> whole = x;
  keep_random(whole, 1, 1);
  EXPECT_EQ(whole, x);
}

TEST(KeepRandom, expectation_is_the_value) {
  const std::vector<float> x = noise(50, 2);
  std::vector<double> sum(x.size());
  constexpr int kKeys = 20000;
  for (int key = 0; key < kKeys; ++key) {
    std::vector<float> y = x;
    keep_random(y, 0.4, static_cast<uint64_t>(key));
    for (size_t i = 0; i < y.size(); ++i) sum[i] += static_cast<double>(y[i]);
  }
  for (size_t i = 0; i < x.size(); ++i) {
    const auto want = static_cast<double>(x[i]);
    EXPECT_NEAR(sum[i] / kKeys, want, 5 * std::abs(want) * std::sqrt(1.5 / kKeys));
  }
}

// Matrices of three adapters, some values masked, as a pruning or DARE would leave them.
class Combine : public testing::Test {
 protected:
  static constexpr int64_t kRows = 5, kCols = 7;
  static constexpr size_t kN = 35;

  Combine() {
    std::mt19937 random(3);
    for (uint32_t i = 0; i < 3; ++i) {
      masked_.push_back(noise(kN, 10 + i));
      for (float& x : masked_.back()) x = random() % 3 == 0 ? 0.0F : x / 0.66F;
    }
  }
  ReadTerm read() const {
    return [this](size_t i, Matrix& m) { m = {kRows, kCols, masked_[i]}; };
  }
  double value(size_t adapter, size_t i) const { return static_cast<double>(masked_[adapter][i]); }

  std::vector<std::vector<float>> masked_;
  const std::vector<MergeTerm> terms_{{0.8F}, {-0.5F}, {1.7F}};
  std::vector<float> out_ = std::vector<float>(kN);
  const Tensor tensor_ = view(out_.data(), Dtype::f32, {kRows, kCols});
};

TEST_F(Combine, weighted_sum_of_masked_values) {
  weighted_sum(terms_, read(), tensor_);
  for (size_t i = 0; i < kN; ++i) {
    EXPECT_NEAR(out_[i], 0.8 * value(0, i) - 0.5 * value(1, i) + 1.7 * value(2, i), 2e-6);
  }
}

TEST_F(Combine, elected_mean_of_masked_values) {
  for (const auto by : {MergeSpec::MajoritySign::total, MergeSpec::MajoritySign::frequency}) {
    std::fill(out_.begin(), out_.end(), 0.0F);
    elected_mean(terms_, read(), by, tensor_);
    for (size_t i = 0; i < kN; ++i) {
      double votes = 0;
      for (size_t a = 0; a < 3; ++a) {
        const double x = value(a, i);
        votes += by == MergeSpec::MajoritySign::total ? x : (x > 0) - (x < 0);
      }
      double sum = 0, kept = 0;
      for (size_t a = 0; a < 3; ++a) {
        const double x = value(a, i);
        if ((votes >= 0 && x > 0) || (votes < 0 && x < 0)) {
          sum += static_cast<double>(terms_[a].weight) * x;
          kept += 1;
        }
      }
      EXPECT_NEAR(out_[i], sum / std::max(1.0, kept), 2e-6) << i;
    }
  }
}

TEST(ElectedMean, a_tie_elects_plus_and_zeros_are_not_counted) {
  const std::vector<std::vector<float>> x{{2, 0, -1}, {-2, 0, 0}};
  std::vector<float> out(3);
  const std::vector<MergeTerm> terms{{1.0F}, {1.0F}};
  elected_mean(
      terms, [&](size_t i, Matrix& m) { m = {1, 3, x[i]}; }, MergeSpec::MajoritySign::total,
      view(out.data(), Dtype::f32, {1, 3}));
  EXPECT_EQ(out, (std::vector<float>{2, 0, -1}));
}

TEST(WeightedSum, terms_have_their_own_place_and_size) {
  std::vector<float> out(6);
  const std::vector<MergeTerm> terms{{2.0F, 0, 0}, {-1.0F, 1, 1}};
  const ReadTerm read = [](size_t i, Matrix& m) {
    m = i == 0 ? Matrix{1, 3, {1, 2, 3}} : Matrix{1, 2, {4, 5}};
  };
  weighted_sum(terms, read, view(out.data(), Dtype::f32, {2, 3}));
  EXPECT_EQ(out, (std::vector<float>{2, 4, 6, 0, -4, -5}));
}

}  // namespace
}  // namespace lorry
