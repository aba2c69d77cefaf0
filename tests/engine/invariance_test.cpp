// A request's bits depend on the request alone: not on batch mates, their adapters, chunking, the
// prefix cache, preemption or the number of threads.
#include <algorithm>
#include <cstring>
#include <random>

#include <gtest/gtest.h>

#include "base/fake_nodes.h"
#include "engine/harness.h"

namespace lorry::test {
namespace {

struct Case {
  std::string model;
  std::vector<std::string> adapters;
};

const std::vector<Case> kCases = {
    {"mixtral-base",
     {"attn-r8", "experts-r8", "router-r4", "all-linear-rslora-r16", "lm-head-r8",
      "qv-r4-alpha32"}},
    {"mixtral-sliding", {"attn-r8", "experts-r4"}},
    {"mixtral-v5-target-parameters", {"fused-r8", "attn-gate-r4", "fused-patterns"}},
    {"dbrx-base", {"attn-r8", "experts-r8", "everything-r8", "lm-head-r8"}}};

std::vector<Prompt> random_prompts(const Case& c, size_t n, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<Prompt> out;
  for (size_t i = 0; i < n; ++i) {
    Prompt p;
    const size_t length = 1 + random() % 130;
    for (size_t k = 0; k < length; ++k) p.tokens.push_back(static_cast<int32_t>(random() % 256));
    const size_t a = random() % (c.adapters.size() + 1);
    if (a < c.adapters.size()) p.adapter = c.adapters[a];
    out.push_back(std::move(p));
  }
  return out;
}

void expect_equal_logits(const Collector& a, const Collector& b, const std::string& what) {
  ASSERT_EQ(a.logits.size(), b.logits.size()) << what;
  ASSERT_FALSE(a.logits.empty());
  EXPECT_EQ(std::memcmp(a.logits.data(), b.logits.data(), a.logits.size() * sizeof(float)), 0)
      << what;
}

// How a model computes: exactly, in bf16, and in bf16 with its linears quantised; its keys and
// values in that type, and in int8.
struct Mode {
  std::string name;
  Dtype dtype;
  WeightFormat format;
  KvFormat kv = KvFormat::act;
};
const std::vector<Mode> kModes = {
    {"F32", Dtype::f32, {}},
    {"BF16", Dtype::bf16, {}},
    {"F16", Dtype::f16, {}},
    {"int8", Dtype::bf16, {WeightFormat::Kind::int8, 0, false}},
    {"int4", Dtype::bf16, {WeightFormat::Kind::int4, 32, false}},
    {"fp8", Dtype::bf16, {WeightFormat::Kind::fp8, 0, false}},
    {"BF16_kv_int8", Dtype::bf16, {}, KvFormat::int8},
    {"int4_kv_int8", Dtype::bf16, {WeightFormat::Kind::int4, 32, false}, KvFormat::int8}};

class Invariance : public testing::TestWithParam<std::tuple<size_t, size_t>> {
 protected:
  EngineOptions options() const {
    EngineOptions o = golden_options(model_case().model, model_case().adapters);
    const Mode& mode = kModes[std::get<1>(GetParam())];
    o.dtype = mode.dtype;
    o.formats.linears = mode.format;
    o.kv_format = mode.kv;
    return o;
  }
  static const Case& model_case() { return kCases[std::get<0>(GetParam())]; }
  static std::vector<Prompt> prompts(size_t n, uint64_t seed) {
    return random_prompts(model_case(), n, seed);
  }
  // Each prompt alone, on one thread, in one chunk.
  std::vector<std::shared_ptr<Collector>> alone(const std::vector<Prompt>& all) const {
    EngineOptions o = options();
    o.threads = 1;
    o.prefix_cache = false;
    TestEngine engine(o);
    std::vector<std::shared_ptr<Collector>> out;
    for (const Prompt& p : all) out.push_back(engine.run({logits_request(p)})[0]);
    return out;
  }
  std::vector<std::shared_ptr<Collector>> generated_alone(const std::vector<Prompt>& all,
                                                          int32_t n) const {
    EngineOptions o = options();
    o.threads = 1;
    o.prefix_cache = false;
    TestEngine engine(o);
    std::vector<std::shared_ptr<Collector>> out;
    for (const Prompt& p : all) out.push_back(engine.run({scored(p, n)})[0]);
    return out;
  }
};

TEST_P(Invariance, batches_of_2_7_and_64_with_other_adapters) {
  const std::vector<Prompt> all = prompts(64, 1);
  const auto want = alone(all);
  TestEngine engine(options());
  for (const size_t batch : {2U, 7U, 64U}) {
    for (size_t first = 0; first < all.size(); first += batch) {
      std::vector<Request> requests;
      for (size_t i = first; i < std::min(first + batch, all.size()); ++i) {
        requests.push_back(logits_request(all[i]));
      }
      const auto got = engine.run(std::move(requests));
      for (size_t i = 0; i < got.size(); ++i) {
        expect_equal_logits(*got[i], *want[first + i], "batch " + std::to_string(batch));
      }
    }
  }
}

TEST_P(Invariance, chunks_of_1_16_100_and_unlimited_with_1_and_2_threads) {
  const std::vector<Prompt> all = prompts(12, 2);
  const auto want = alone(all);
  for (const int32_t chunk : {1, 16, 100, 0}) {
    for (const int32_t threads : {1, 2}) {
      EngineOptions o = options();
      o.prefill_chunk = chunk;
      o.threads = threads;
      TestEngine engine(o);
      std::vector<Request> requests;
      for (const Prompt& p : all) requests.push_back(logits_request(p));
      const auto got = engine.run(std::move(requests));
      for (size_t i = 0; i < got.size(); ++i) {
        expect_equal_logits(*got[i], *want[i], "chunk " + std::to_string(chunk));
      }
    }
  }
}

TEST_P(Invariance, threads_on_two_numa_nodes) {
  const std::vector<Prompt> all = prompts(12, 8);
  const auto want = alone(all);
  EngineOptions o = options();
  o.threads = 3;
  o.topology = fake_nodes(2);
  TestEngine engine(o);
  std::vector<Request> requests;
  for (const Prompt& p : all) requests.push_back(logits_request(p));
  const auto got = engine.run(std::move(requests));
  for (size_t i = 0; i < got.size(); ++i) expect_equal_logits(*got[i], *want[i], "two nodes");
}

TEST_P(Invariance, warm_prefix_cache) {
  const std::vector<Prompt> all = prompts(24, 3);
  const auto want = generated_alone(all, 20);
  TestEngine engine(options());
  for (const bool warm : {false, true}) {
    std::vector<Request> requests;
    for (const Prompt& p : all) requests.push_back(scored(p, 20));
    const auto got = engine.run(std::move(requests));
    int32_t cached = 0;
    for (size_t i = 0; i < got.size(); ++i) {
      expect_equal_tokens(*got[i], *want[i], warm ? "warm" : "cold");
      cached += got[i]->finish->cached_tokens;
    }
    EXPECT_EQ(cached > 0, warm);
  }
}

TEST_P(Invariance, after_preemption) {
  const std::vector<Prompt> all = prompts(24, 4);
  const auto want = generated_alone(all, 60);
  EngineOptions o = options();
  o.kv_tokens = 512;                              // two or three of them at a time
  if (model_case().model == "mixtral-sliding") {  // a window leaves each with few blocks
    o.kv_tokens = 112;
    o.prefill_chunk = 16;
  }
  TestEngine engine(o);
  // Who is preempted depends on when requests arrive; once the adapters are loaded, all at once.
  for (int round = 0; round < 20 && engine->stats().preemptions == 0; ++round) {
    std::vector<Request> requests;
    for (const Prompt& p : all) requests.push_back(scored(p, 60));
    const auto got = engine.run(std::move(requests));
    for (size_t i = 0; i < got.size(); ++i) expect_equal_tokens(*got[i], *want[i], "preempted");
  }
  EXPECT_GT(engine->stats().preemptions, 0);
}

TEST_P(Invariance, seeded_sampling) {
  const std::vector<Prompt> all = prompts(16, 5);
  const auto request = [](const Prompt& p) {
    Request r = scored(p, 30);
    r.sampling.sample = true;
    r.sampling.temperature = 0.8F;
    r.sampling.top_p = 0.9F;
    r.sampling.repetition_penalty = 1.1F;
    r.sampling.seed = 17;
    return r;
  };
  TestEngine engine(options());
  std::vector<Request> requests;
  for (const Prompt& p : all) requests.push_back(request(p));
  const auto together = engine.run(std::move(requests));
  for (size_t i = 0; i < all.size(); ++i) {
    expect_equal_tokens(*together[i], *engine.run({request(all[i])})[0], "sampled");
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, Invariance,
                         testing::Combine(testing::Range(size_t{0}, kCases.size()),
                                          testing::Range(size_t{0}, kModes.size())),
                         [](const auto& p) {
                           return test_name(kCases[std::get<0>(p.param)].model) + "_" +
                                  kModes[std::get<1>(p.param)].name;
                         });

}  // namespace
}  // namespace lorry::test
