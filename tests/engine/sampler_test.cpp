#include "engine/sampler.h"

#include <cmath>
#include <limits>
#include <map>

#include <gtest/gtest.h>

#include "engine/philox.h"

namespace lorry {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

std::map<int32_t, int> draw(const std::vector<float>& logits, SamplingParams p, int n = 4000) {
  Sampler sampler(static_cast<int64_t>(logits.size()));
  p.sample = true;
  std::map<int32_t, int> counts;
  for (int i = 0; i < n; ++i) ++counts[sampler.sample(logits, p, {}, static_cast<uint64_t>(i))->id];
  return counts;
}

// Known answers of the reference implementation (Random123, kat_vectors).
TEST(Philox, known_answers) {
  const auto zero = philox(0, 0);
  EXPECT_EQ(zero, (std::array<uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
}

TEST(Sampler, greedy_takes_the_largest_and_the_lowest_of_ties) {
  Sampler s(4);
  EXPECT_EQ(s.sample(std::vector<float>{1, 3, 3, 2}, {}, {}, 0)->id, 1);
}

TEST(Sampler, E14_nan_and_infinite_logits_have_no_answer) {
  Sampler s(3);
  EXPECT_FALSE(s.sample(std::vector<float>{1, kNaN, 2}, {}, {}, 0));
  EXPECT_FALSE(s.sample(std::vector<float>{1, INFINITY, 2}, {}, {}, 0));
  EXPECT_FALSE(s.sample(std::vector<float>{-INFINITY, -INFINITY, -INFINITY}, {}, {}, 0));
  EXPECT_TRUE(s.sample(std::vector<float>{-INFINITY, 1, -INFINITY}, {}, {}, 0));
}

TEST(Sampler, draws_follow_the_distribution) {
  const auto counts = draw({0.0F, std::log(3.0F)}, {});
  EXPECT_NEAR(counts.at(1) / 4000.0, 0.75, 0.03);
}

TEST(Sampler, temperature_sharpens) {
  SamplingParams p;
  p.temperature = 0.5F;
  EXPECT_NEAR(draw({0.0F, std::log(3.0F)}, p).at(1) / 4000.0, 0.9, 0.03);
  p.temperature = 1e-30F;
  EXPECT_EQ(draw({0.0F, 1.0F}, p).count(0), 0U);
}

TEST(Sampler, top_k_keeps_the_ties_of_the_kth) {
  SamplingParams p;
  p.top_k = 2;
  const auto counts = draw({3, 2, 2, 1}, p);
  EXPECT_TRUE(counts.contains(0) && counts.contains(1) && counts.contains(2));
  EXPECT_FALSE(counts.contains(3));
}

TEST(Sampler, top_p_keeps_at_least_one) {
  SamplingParams p;
  p.top_p = 1e-6F;
  EXPECT_EQ(draw({1, 2, 3}, p).size(), 1U);
  p.top_p = 0.7F;  // probabilities 0.1, 0.3, 0.6
  const auto counts = draw({std::log(0.1F), std::log(0.3F), std::log(0.6F)}, p);
  EXPECT_FALSE(counts.contains(0));
  EXPECT_NEAR(counts.at(2) / 4000.0, 2.0 / 3, 0.03);
}

TEST(Sampler, min_p_is_relative_to_the_best) {
  SamplingParams p;
  p.min_p = 0.4F;
  const auto counts = draw({std::log(0.1F), std::log(0.3F), std::log(0.6F)}, p);
  EXPECT_FALSE(counts.contains(0));
  EXPECT_TRUE(counts.contains(1));
}

TEST(Sampler, typical_prefers_the_usual_surprise) {
  // Entropy 0.898: the surprises are 2.30, 1.20, 0.51; the second is the nearest.
  SamplingParams p;
  p.typical_p = 0.2F;
  const auto counts = draw({std::log(0.1F), std::log(0.3F), std::log(0.6F)}, p);
  EXPECT_EQ(counts.size(), 1U);
  EXPECT_TRUE(counts.contains(1));
}

TEST(Sampler, no_repetition_penalty_makes_scores_infinite) {
  Sampler s(4);
  const std::vector<float> logits{1, 0, -1, 2};
  const std::vector<int32_t> tokens{0, 1, 2};
  for (const float penalty : {0.0F, 1e-40F, 3e38F, INFINITY}) {
    SamplingParams p;
    p.repetition_penalty = penalty;
    const auto token = s.sample(logits, p, {tokens, 3}, 3);
    ASSERT_TRUE(token) << penalty;
    EXPECT_EQ(token->id, penalty < 1 ? 0 : 3) << penalty;
  }
}

TEST(Sampler, repetition_penalty_divides_or_multiplies) {
  SamplingParams p;
  p.repetition_penalty = 2.0F;
  Sampler s(3);
  const std::vector<int32_t> seen{2, 2};
  EXPECT_EQ(s.sample(std::vector<float>{1.1F, 0, 2}, p, {seen, 1}, 0)->id, 0);
  EXPECT_EQ(s.sample(std::vector<float>{-1.9F, -5, -1}, p, {seen, 1}, 0)->id, 0);
}

TEST(Sampler, frequency_and_presence_count_generated_tokens_alone) {
  SamplingParams p;
  p.frequency_penalty = 0.5F;
  p.presence_penalty = 0.5F;
  Sampler s(2);
  const std::vector<int32_t> tokens{1, 1, 1};
  EXPECT_EQ(s.sample(std::vector<float>{0, 1.4F}, p, {tokens, 3}, 0)->id, 1);  // all prompt
  EXPECT_EQ(s.sample(std::vector<float>{0, 1.4F}, p, {tokens, 1}, 0)->id, 0);  // 2 · 0.5 + 0.5
  EXPECT_EQ(s.sample(std::vector<float>{0, 1.1F}, p, {tokens, 2}, 0)->id, 1);  // 0.5 + 0.5
}

TEST(Sampler, logit_bias_is_added_first) {
  SamplingParams p;
  p.logit_bias = {{0, 5.0F}};
  Sampler s(2);
  EXPECT_EQ(s.sample(std::vector<float>{0, 4}, p, {}, 0)->id, 0);
}

TEST(Sampler, the_same_seed_and_position_give_the_same_token) {
  SamplingParams p;
  p.sample = true;
  p.seed = 99;
  const std::vector<float> logits{1, 1, 1, 1, 1, 1, 1, 1};
  Sampler a(8), b(8);
  int different = 0;
  for (uint64_t i = 0; i < 200; ++i) {
    const int32_t id = a.sample(logits, p, {}, i)->id;
    EXPECT_EQ(id, b.sample(logits, p, {}, i)->id);
    p.seed = 100;
    different += id != a.sample(logits, p, {}, i)->id ? 1 : 0;
    p.seed = 99;
  }
  EXPECT_GT(different, 100);
}

TEST(Sampler, logprobs_of_processed_or_raw_scores) {
  SamplingParams p;
  p.logprobs = true;
  p.alternatives = 2;
  p.logit_bias = {{0, 1.0F}};
  Sampler s(2);
  const std::vector<float> logits{0, 0};
  const auto processed = s.sample(logits, p, {}, 0);
  EXPECT_NEAR(processed->logprob, -std::log(1 + std::exp(-1.0)), 1e-6);
  ASSERT_EQ(processed->alternatives.size(), 2U);
  EXPECT_EQ(processed->alternatives[0].id, 0);
  p.raw_logprobs = true;
  EXPECT_NEAR(s.sample(logits, p, {}, 0)->logprob, -std::log(2.0), 1e-6);
}

}  // namespace
}  // namespace lorry
