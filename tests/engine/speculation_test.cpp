// Drafts change how many steps an answer takes and nothing in it: tokens, log-probabilities and
// finish are the same, bit by bit, as without drafts.
#include <algorithm>
#include <cstring>
#include <random>
#include <set>

#include <gtest/gtest.h>

#include "engine/harness.h"

namespace lorry::test {
namespace {

constexpr int32_t kDrafts = 6;

std::vector<std::string> adapters_of(const std::string& model) {
  if (model == "dbrx-base") return {"attn-r8", "experts-r8"};
  if (model == "mixtral-sliding") return {"attn-r8", "experts-r4"};
  return {"attn-r8", "experts-r8", "lm-head-r8"};
}

EngineOptions options(const std::string& model, Dtype dtype = Dtype::f32) {
  EngineOptions o = golden_options(model, adapters_of(model));
  o.dtype = dtype;
  o.max_sequences = 24;
  return o;
}

EngineOptions with_drafts(EngineOptions o) {
  o.speculative_tokens = kDrafts;
  return o;
}

// Prompts that repeat themselves, so that there is something to find.
std::vector<Prompt> prompts(const std::string& model, size_t n, uint64_t seed) {
  std::mt19937_64 random(seed);
  const std::vector<std::string> adapters = adapters_of(model);
  std::vector<Prompt> out;
  for (size_t i = 0; i < n; ++i) {
    Prompt p;
    const size_t period = 1 + random() % 9;
    const size_t length = 1 + random() % 60;
    for (size_t k = 0; k < length; ++k) {
      p.tokens.push_back(k >= period && random() % 20 != 0 ? p.tokens[k - period]
                                                           : static_cast<int32_t>(random() % 256));
    }
    const size_t a = random() % (adapters.size() + 1);
    if (a < adapters.size()) p.adapter = adapters[a];
    out.push_back(std::move(p));
  }
  return out;
}

// One of every way to choose tokens.
Request request(const Prompt& p, size_t kind, int32_t n) {
  Request r = greedy_request(p, n);
  r.sampling.logprobs = true;
  r.sampling.raw_logprobs = kind % 2 == 0;
  r.sampling.alternatives = 3;
  switch (kind % 6) {
    case 1:
      r.sampling.repetition_penalty = 1.05F;
      break;
    case 2:
      r.sampling.frequency_penalty = 0.2F;
      r.sampling.presence_penalty = 0.1F;
      break;
    case 3:
      r.sampling.sample = true;
      r.sampling.temperature = 0.3F;
      r.sampling.top_p = 0.9F;
      r.sampling.seed = 11 + kind;
      break;
    case 4:
      r.sampling.sample = true;
      r.sampling.temperature = 0.2F;
      r.sampling.top_k = 5;
      r.sampling.repetition_penalty = 1.02F;
      r.sampling.seed = 5 + kind;
      break;
    case 5:
      r.prompt_logprobs = true;
      r.want_logits = true;
      break;
    default:
      break;
  }
  return r;
}

void expect_equal(const std::vector<SampledToken>& a, const std::vector<SampledToken>& b,
                  const std::string& what) {
  ASSERT_EQ(a.size(), b.size()) << what;
  for (size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a[i].id, b[i].id) << what << " " << i;
    EXPECT_EQ(std::memcmp(&a[i].logprob, &b[i].logprob, sizeof(float)), 0) << what << " " << i;
    ASSERT_EQ(a[i].alternatives.size(), b[i].alternatives.size()) << what;
    for (size_t k = 0; k < a[i].alternatives.size(); ++k) {
      EXPECT_EQ(a[i].alternatives[k].id, b[i].alternatives[k].id) << what;
      EXPECT_EQ(a[i].alternatives[k].logprob, b[i].alternatives[k].logprob) << what;
    }
  }
}

void expect_same(const Collector& got, const Collector& want, const std::string& what) {
  expect_equal(got.tokens, want.tokens, what);
  expect_equal(got.prompt, want.prompt, what + " prompt");
  ASSERT_EQ(got.logits.size(), want.logits.size()) << what;
  EXPECT_FALSE(got.out_of_order) << what;
  EXPECT_TRUE(got.logits.empty() || std::memcmp(got.logits.data(), want.logits.data(),
                                                got.logits.size() * sizeof(float)) == 0)
      << what;
  EXPECT_EQ(got.finish->reason, want.finish->reason) << what;
  EXPECT_EQ(got.finish->stop_sequence, want.finish->stop_sequence) << what;
  EXPECT_EQ(got.finish->generated_tokens, want.finish->generated_tokens) << what;
  EXPECT_EQ(got.finish->skipped_tokens, got.n_skipped) << what;
  for (size_t i = 0; i < got.positions.size(); ++i) {
    EXPECT_EQ(got.positions[i], got.finish->prompt_tokens + static_cast<int64_t>(i)) << what;
  }
}

void expect_same(const std::vector<std::shared_ptr<Collector>>& got,
                 const std::vector<std::shared_ptr<Collector>>& want, const std::string& what) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < got.size(); ++i) {
    expect_same(*got[i], *want[i], what + " request " + std::to_string(i));
  }
}

class Speculation : public testing::TestWithParam<std::tuple<std::string, Dtype>> {
 protected:
  EngineOptions plain() const { return options(std::get<0>(GetParam()), std::get<1>(GetParam())); }
  std::vector<Request> requests(size_t n, int32_t length, uint64_t seed = 1) const {
    std::vector<Request> out;
    const auto all = prompts(std::get<0>(GetParam()), n, seed);
    for (size_t i = 0; i < n; ++i) out.push_back(request(all[i], i, length));
    return out;
  }
};

TEST_P(Speculation, answers_are_the_same_alone_and_in_a_batch) {
  const std::vector<Request> all = requests(18, 60);
  TestEngine without(plain());
  const auto want = without.run(all);
  TestEngine with(with_drafts(plain()));
  expect_same(with.run(all), want, "batch");
  for (size_t i = 0; i < all.size(); ++i) {
    expect_same(*with.run({all[i]})[0], *want[i], "alone " + std::to_string(i));
  }
  const EngineStats stats = with->stats();
  EXPECT_GT(stats.draft_tokens_kept, 0);
  EXPECT_GT(stats.draft_tokens, stats.draft_tokens_kept);  // wrong guesses are what could do harm
  EXPECT_EQ(without->stats().draft_tokens, 0);
}

TEST_P(Speculation, answers_are_the_same_after_preemption) {
  const std::vector<Request> all = requests(18, 60, 2);
  TestEngine without(plain());
  const auto want = without.run(all);
  EngineOptions o = with_drafts(plain());
  o.kv_tokens = o.model.find("sliding") != std::string::npos ? 112 : 320;
  o.prefill_chunk = 16;
  TestEngine with(o);
  // Who is preempted depends on when requests arrive; once the adapters are loaded, all at once.
  for (int round = 0; round < 20 && with->stats().preemptions == 0; ++round) {
    expect_same(with.run(all), want, "preempted");
  }
  EXPECT_GT(with->stats().preemptions, 0);
  EXPECT_GT(with->stats().draft_tokens_kept, 0);
}

TEST_P(Speculation, answers_are_the_same_with_a_warm_prefix_cache) {
  std::vector<Request> all = requests(12, 50, 3);
  TestEngine without(plain());
  const auto want = without.run(all);
  TestEngine with(with_drafts(plain()));
  for (int round = 0; round < 2; ++round) expect_same(with.run(all), want, "warm");
  // Blocks that drafts filled are as good as any: a prompt that goes on with an answer finds them.
  for (size_t i = 0; i < all.size(); ++i) {
    if (all[i].prompt_logprobs) continue;
    for (const SampledToken& t : want[i]->tokens) all[i].prompt.push_back(t.id);
    const auto longer = with.run({all[i]})[0];
    const auto wanted = without.run({all[i]})[0];
    expect_same(*longer, *wanted, "longer " + std::to_string(i));
    EXPECT_EQ(longer->finish->cached_tokens, wanted->finish->cached_tokens);
  }
  EXPECT_GT(with->stats().draft_tokens_kept, 0);
}

TEST_P(Speculation, answers_are_the_same_with_few_rows_in_a_step) {
  const std::vector<Request> all = requests(12, 40, 4);
  TestEngine without(plain());
  const auto want = without.run(all);
  for (const int32_t rows : {4, 7}) {
    EngineOptions o = with_drafts(plain());
    o.max_sequences = 4;
    o.max_batch_tokens = rows + 1;
    o.max_logit_rows = rows;
    TestEngine with(o);
    expect_same(with.run(all), want, std::to_string(rows) + " rows");
  }
}

INSTANTIATE_TEST_SUITE_P(
    Cases, Speculation,
    testing::Combine(testing::Values("mixtral-base", "mixtral-sliding", "dbrx-base"),
                     testing::Values(Dtype::f32, Dtype::bf16)),
    [](const auto& p) { return test_name(std::get<0>(p.param), std::get<1>(p.param)); });

// A prompt whose answer repeats itself from the first token on.
Request repeating(int32_t n) {
  Request r = greedy_request({{7, 8, 9, 7, 8, 9, 7, 8, 9}, ""}, n);
  r.sampling.logit_bias = {{7, 1e4F}};
  return r;
}

TEST(Drafts, save_steps_and_are_counted) {
  TestEngine with(with_drafts(options("mixtral-base")));
  const auto got = with.run({repeating(60)})[0];
  EXPECT_EQ(got->tokens.size(), 60U);
  EXPECT_GT(got->finish->skipped_tokens, 40);
  EXPECT_EQ(got->finish->skipped_tokens, got->n_skipped);
  const EngineStats stats = with->stats();
  EXPECT_EQ(stats.draft_tokens_kept, got->n_skipped);
  EXPECT_EQ(stats.generated_tokens, 60);
  EXPECT_LT(stats.steps, 20);
}

TEST(Drafts, never_exceed_max_new_tokens) {
  TestEngine with(with_drafts(options("mixtral-base")));
  for (int32_t n = 0; n < 20; ++n) {
    const auto got = with.run({repeating(n)})[0];
    EXPECT_EQ(got->tokens.size(), static_cast<size_t>(n));
    EXPECT_EQ(got->finish->reason, FinishReason::length);
  }
}

// An end among kept drafts is an end: nothing behind it is told.
TEST(Drafts, an_answer_ends_among_them_at_a_token_or_a_text) {
  TestEngine without(options("mixtral-base"));
  TestEngine with(with_drafts(options("mixtral-base")));
  Request r = repeating(60);
  r.sampling.logit_bias.clear();
  const auto plain = without.run({r})[0];
  const std::vector<int32_t> ids = plain->ids();
  std::set<FinishReason> reasons;
  for (size_t i = 1; i < ids.size(); ++i) {
    Request by_id = r;
    by_id.stop_token_ids = {ids[i]};
    Request by_text = r;
    by_text.stop = {without->tokenizer()->decode(std::span(ids).subspan(i - 1, 2))};
    if (by_text.stop[0].empty()) by_text.stop.clear();
    for (const Request& ending : {by_id, by_text}) {
      const auto got = with.run({ending})[0];
      expect_same(*got, *without.run({ending})[0], "end at " + std::to_string(i));
      reasons.insert(got->finish->reason);
    }
  }
  EXPECT_TRUE(reasons.contains(FinishReason::eos_token));
  EXPECT_TRUE(reasons.contains(FinishReason::stop_sequence));
  EXPECT_GT(with->stats().draft_tokens_kept, 0);
}

TEST(Drafts, a_sliding_window_admits_sequences_longer_than_the_cache) {
  EngineOptions o = options("mixtral-sliding");
  TestEngine large(o);
  o.kv_tokens = 96;
  o.prefill_chunk = 16;
  TestEngine small(with_drafts(o));
  const Request r = repeating(200);
  expect_same(small.run({r}), large.run({r}), "window");
}

TEST(Drafts, cancelling_frees_everything) {
  TestEngine with(with_drafts(options("mixtral-base")));
  std::vector<std::shared_ptr<Collector>> sinks;
  std::vector<RequestId> ids;
  for (int i = 0; i < 20; ++i) {
    Request r = repeating(230);
    auto sink = std::make_shared<Collector>(with->info().spec.vocab);
    r.sink = sink;
    sinks.push_back(sink);
    ids.push_back(with->submit(std::move(r)));
  }
  for (const RequestId id : ids) with->cancel(id);
  for (auto& s : sinks) s->wait();
  EXPECT_TRUE(with->drain(10));
  with->adapters();  // the step in which the last one ended is over
  EXPECT_EQ(with->stats().kv_blocks_free, with->stats().kv_blocks);
}

}  // namespace
}  // namespace lorry::test
