// Green lists against torch (tools/make_watermark_lists.py), where in the sampler the mark is made,
// and marked texts as a detector of the paper sees them.
#include "engine/watermark.h"

#include <algorithm>
#include <cmath>
#include <set>

#include <boost/json/serialize.hpp>
#include <gtest/gtest.h>

#include "base/json.h"
#include "base/sha256.h"
#include "engine/harness.h"
#include "engine/ranks.h"
#include "engine/sampler.h"

namespace lorry::test {
namespace {

constexpr const char* kModel = "mixtral-base";

TEST(GreenList, is_that_of_torch) {
  const json::value file = parse_json_file(golden("watermark.json"));
  ASSERT_GT(file.at("cases").as_array().size(), 20U);
  for (const json::value& c : file.at("cases").as_array()) {
    GreenList list(c.at("vocab").as_int64());
    const auto green =
        list.after(static_cast<int32_t>(c.at("previous").as_int64()), c.at("gamma").as_double());
    const std::string what = json::serialize(c);
    ASSERT_EQ(green.size(), static_cast<size_t>(c.at("size").as_int64())) << what;
    const json::array& first = c.at("first").as_array();
    for (size_t i = 0; i < first.size(); ++i) EXPECT_EQ(green[i], first[i].as_int64()) << what;
    Sha256 hash;
    hash.update(std::as_bytes(green));
    EXPECT_EQ(to_hex(hash.finish()), c.at("sha256").as_string()) << what;
  }
}

// The order of the calls does not matter.
TEST(GreenList, depends_on_the_previous_token_alone) {
  GreenList list(1000);
  const auto copy = [&](int32_t previous, double gamma) {
    const auto green = list.after(previous, gamma);
    return std::vector<int32_t>(green.begin(), green.end());
  };
  const auto seven = copy(7, 0.5);
  EXPECT_NE(copy(8, 0.5), seven);
  const auto quarter = copy(7, 0.25);
  EXPECT_EQ(quarter, std::vector<int32_t>(seven.begin(), seven.begin() + 250));
  EXPECT_EQ(copy(7, 0.5), seven);
  EXPECT_EQ(std::set<int32_t>(seven.begin(), seven.end()).size(), 500U);
}

// A vocabulary of eight, with one green and one red token after kPrevious.
class MarkedSampler : public testing::Test {
 protected:
  static constexpr int32_t kPrevious = 3;

  MarkedSampler() : sampler(8) {
    params.watermark = Watermark{.gamma = 0.5, .delta = 2.0F};
    params.logprobs = true;
    GreenList list(8);
    const auto ids = list.after(kPrevious, 0.5);
    is_green.assign(8, false);
    for (const int32_t id : ids) is_green[static_cast<size_t>(id)] = true;
    const auto other = [&](bool wanted) {
      for (int32_t id = 0;; ++id) {
        if (id != kPrevious && is_green[static_cast<size_t>(id)] == wanted) return id;
      }
    };
    green = other(true);
    red = other(false);
  }
  // log_softmax of `scores` at `id`.
  static double logprob(const std::vector<float>& scores, int32_t id) {
    double sum = 0;
    for (const float s : scores) sum += std::exp(static_cast<double>(s));
    return static_cast<double>(scores[static_cast<size_t>(id)]) - std::log(sum);
  }

  Sampler sampler;
  SamplingParams params;
  std::vector<bool> is_green;
  int32_t green = 0, red = 0;
};

TEST_F(MarkedSampler, delta_is_added_before_the_repetition_penalty) {
  std::vector<float> logits(8, -9.0F);
  logits[static_cast<size_t>(green)] = -1;
  logits[static_cast<size_t>(red)] = 0.25F;
  params.repetition_penalty = 2;
  const std::vector<int32_t> tokens{green, kPrevious};
  // (-1 + 2) / 2 = 0.5; the other way round it would be -1 * 2 + 2 = 0.
  const auto token = sampler.sample(logits, params, {tokens, 1}, 2);
  EXPECT_EQ(token->id, green);
  std::vector<float> scores = logits;
  for (size_t i = 0; i < 8; ++i) scores[i] += is_green[i] ? 2.0F : 0.0F;
  scores[static_cast<size_t>(green)] = 0.5F;
  scores[static_cast<size_t>(kPrevious)] *= 2;
  EXPECT_NEAR(static_cast<double>(token->logprob), logprob(scores, green), 1e-5);
}

TEST_F(MarkedSampler, delta_is_added_before_the_temperature_divides) {
  const std::vector<float> logits{0.1F, 0.2F, 0.3F, 0.4F, 0.5F, 0.6F, 0.7F, 0.8F};
  params.sample = true;
  params.temperature = 0.5F;
  const std::vector<int32_t> tokens{kPrevious};
  std::vector<float> scores = logits;
  for (size_t i = 0; i < 8; ++i) scores[i] = (scores[i] + (is_green[i] ? 2.0F : 0.0F)) / 0.5F;
  for (uint64_t position = 1; position < 40; ++position) {
    const auto token = sampler.sample(logits, params, {tokens, 1}, position);
    EXPECT_NEAR(static_cast<double>(token->logprob), logprob(scores, token->id), 1e-5);
  }
}

TEST_F(MarkedSampler, raw_logprobs_are_without_it) {
  std::vector<float> logits(8, 0.0F);
  params.raw_logprobs = true;
  const std::vector<int32_t> tokens{kPrevious};
  const auto token = sampler.sample(logits, params, {tokens, 1}, 1);
  EXPECT_TRUE(is_green[static_cast<size_t>(token->id)]);
  EXPECT_NEAR(static_cast<double>(token->logprob), -std::log(8.0), 1e-5);
}

TEST_F(MarkedSampler, a_mask_without_green_tokens_leaves_the_red_ones) {
  const std::vector<float> logits(8, 0.0F);
  const std::vector<int32_t> tokens{kPrevious};
  const std::vector<uint32_t> allowed{1U << red};
  params.watermark->delta = 100;
  const auto token = sampler.sample(logits, params, {tokens, 1, allowed}, 1);
  EXPECT_EQ(token->id, red);
  EXPECT_NEAR(static_cast<double>(token->logprob), 0.0, 1e-6);
}

TEST_F(MarkedSampler, the_last_token_of_prompt_and_output_decides) {
  const std::vector<float> logits(8, 0.0F);
  GreenList list(8);
  for (int32_t previous = 0; previous < 8; ++previous) {
    const auto ids = list.after(previous, 0.5);
    const int32_t lowest = *std::min_element(ids.begin(), ids.end());
    for (const size_t n_prompt : {size_t{1}, size_t{2}}) {
      const std::vector<int32_t> tokens{5, previous};
      EXPECT_EQ(sampler.sample(logits, params, {tokens, n_prompt}, 2)->id, lowest);
    }
  }
}

class MarkedText : public testing::Test {
 protected:
  static EngineOptions options() { return golden_options(kModel, {"attn-r8", "experts-r8"}); }
  MarkedText() : tokenizer(Tokenizer::load(golden(std::string(kModel) + "/model"))) {}

  // What the paper's detector says of an answer, from its tokens alone: how many standard
  // deviations the number of green tokens lies above that of a text without a mark.
  static double z(const Collector& answer, double gamma, int64_t vocab) {
    GreenList list(vocab);
    const std::vector<int32_t> ids = answer.ids();
    double n_green = 0;
    for (size_t i = 1; i < ids.size(); ++i) {
      const auto green = list.after(ids[i - 1], gamma);
      n_green += std::find(green.begin(), green.end(), ids[i]) == green.end() ? 0 : 1;
    }
    const double n = static_cast<double>(ids.size()) - 1;
    return (n_green - gamma * n) / std::sqrt(n * gamma * (1 - gamma));
  }

  // Sampled or greedy, with and without what else changes scores; kinds 0 to 5.
  Request asking(uint64_t kind, int32_t n) const {
    Request r = scored({{5, 6, 7, static_cast<int32_t>(kind) + 10}, ""}, n);
    r.sampling.raw_logprobs = false;
    r.sampling.sample = kind != 1;
    r.sampling.seed = kind;
    r.sampling.watermark.emplace();
    if (kind == 2) r.adapter = "experts-r8";
    if (kind == 3) r.sampling.top_p = 0.95F;
    if (kind == 4) r.sampling.repetition_penalty = 1.1F;
    if (kind == 5) {
      const std::string text = "[a-z ]{" + std::to_string(4 * n) + "}";
      r.grammar = std::make_shared<const Grammar>(tokenizer, GrammarKind::regex, text);
    }
    return r;
  }

  const Tokenizer tokenizer;
};

TEST_F(MarkedText, is_found_by_a_detector_and_other_text_is_not) {
  constexpr uint64_t kKinds = 6;
  TestEngine engine(options());
  const int64_t vocab = engine->info().spec.vocab;
  for (const double gamma : {0.5, 0.25}) {
    std::vector<Request> requests;
    for (uint64_t kind = 0; kind < kKinds; ++kind) {
      Request r = asking(kind, 120);
      r.sampling.watermark->gamma = gamma;
      r.sampling.watermark->delta = 3;
      requests.push_back(r);
      r.sampling.watermark.reset();
      requests.push_back(r);
    }
    const auto answers = engine.run(std::move(requests));
    for (size_t i = 0; i < answers.size(); ++i) {
      ASSERT_EQ(answers[i]->ids().size(), 120U);
      const double found = z(*answers[i], gamma, vocab);
      if (i % 2 == 0) {
        EXPECT_GT(found, 6.0) << "kind " << i / 2;
      } else {
        EXPECT_LT(found, 4.0) << "kind " << i / 2;
      }
    }
  }
}

TEST_F(MarkedText, depends_on_the_request_alone) {
  std::vector<Request> requests;
  for (uint64_t i = 0; i < 18; ++i) {
    Request r = asking(i % 6, 80);
    r.sampling.seed = i;
    if (i % 4 == 3) r.sampling.watermark.reset();
    requests.push_back(std::move(r));
  }
  expect_alone_decides(options(), requests);
}

// With drafts that are kept: the green list at each row is that of the token before it.
TEST_F(MarkedText, is_the_same_with_kept_drafts) {
  EngineOptions o = options();
  TestEngine plain(o);
  o.speculative_tokens = 6;
  TestEngine drafting(o);
  int32_t kept = 0;
  for (int32_t i = 0; i < 6; ++i) {
    Request r = scored({{5, 6, 7, 20 + i}, ""}, 200);
    r.sampling.raw_logprobs = false;
    r.sampling.watermark.emplace();
    const auto want = plain.run({r})[0];
    const auto got = drafting.run({r})[0];
    expect_equal_tokens(*got, *want, "drafts");
    kept += got->n_skipped;
  }
  EXPECT_GT(kept, 20);
}

TEST_F(MarkedText, is_found_where_ranks_share_the_model) {
  RankedEngine engine(options(), 2);
  const auto answer = engine->run({asking(0, 120)})[0];
  EXPECT_GT(z(*answer, 0.5, (*engine)->info().spec.vocab), 4.0);
}

}  // namespace
}  // namespace lorry::test
