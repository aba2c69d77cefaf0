// One model over several ranks: every golden case, adapters included, on 1, 2, 3, 4 and 8.
#include "engine/ranks.h"

#include <cstring>
#include <filesystem>
#include <numeric>

#include "adapters/adapter.h"
#include "engine/golden_cases.h"
#include "engine/loaded_model.h"
#include "engine/one_sequence.h"
#include "ops/scores.h"

namespace lorry::test {
namespace {

class Ranks : public testing::TestWithParam<std::tuple<std::string, int>> {
 protected:
  static std::string name() { return std::get<0>(GetParam()); }
  static int count() { return std::get<1>(GetParam()); }
};

void expect_equal(const std::vector<std::shared_ptr<Collector>>& a,
                  const std::vector<std::shared_ptr<Collector>>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    ASSERT_EQ(a[i]->logits.size(), b[i]->logits.size());
    EXPECT_EQ(
        std::memcmp(a[i]->logits.data(), b[i]->logits.data(), a[i]->logits.size() * sizeof(float)),
        0)
        << i;
  }
}

// Leader::forward aborts where a rank chose other experts.
TEST_P(Ranks, golden_logits_as_one_mixed_batch_with_equal_bits_twice) {
  const GoldenCase c(name());
  std::vector<std::shared_ptr<Collector>> first;
  for (int round = 0; round < 2; ++round) {
    RankedEngine engine(c.options(Dtype::f32), count());
    const auto got = engine->run(logits_requests(c));
    expect_golden(c, kGoldenF32, got);
    round == 0 ? void(first = got) : expect_equal(first, got);
  }
}

class RanksWithWholeExperts : public Ranks {};  // a golden model has at least four of them

TEST_P(RanksWithWholeExperts, golden_logits_as_one_mixed_batch) {
  const GoldenCase c(name());
  EngineOptions o = c.options(Dtype::f32);
  o.expert_parallel = true;
  RankedEngine engine(o, count());
  expect_golden(c, kGoldenF32, engine->run(logits_requests(c)));
}

std::string name_of(const testing::TestParamInfo<std::tuple<std::string, int>>& p) {
  return test_name(std::get<0>(p.param)) + "_on_" + std::to_string(std::get<1>(p.param));
}
INSTANTIATE_TEST_SUITE_P(Cases, Ranks,
                         testing::Combine(testing::ValuesIn(kGoldenCases),
                                          testing::Values(1, 2, 3, 4, 8)),
                         name_of);
INSTANTIATE_TEST_SUITE_P(Cases, RanksWithWholeExperts,
                         testing::Combine(testing::ValuesIn(kGoldenCases),
                                          testing::Values(2, 3, 4)),
                         name_of);
INSTANTIATE_TEST_SUITE_P(
    CasesOfManyExperts, RanksWithWholeExperts,
    testing::Combine(testing::Values("mixtral-base", "mixtral-v5-target-parameters",
                                     "mixtral-embeddings", "dbrx-base", "dbrx-saved"),
                     testing::Values(8)),
    name_of);

// 2 L all_reduce of the layers and one of the embedding, each 4 D bytes a token: docs/scaling.md.
TEST(RanksOfAnEngine, bytes_sent_per_token_are_those_of_the_formula) {
  for (const int ranks : {2, 4}) {
    RankedEngine engine(golden_options("mixtral-base", {}), ranks);
    const int64_t layers = 2, dim = 64;
    const int64_t before = engine.comm().bytes_sent();
    engine->run({logits_request({{1, 2, 3, 4, 5}, ""})});
    EXPECT_EQ(engine.comm().bytes_sent() - before, 5 * (2 * layers + 1) * 4 * dim);
    engine->run({greedy_request({{1, 2, 3, 4, 5}, ""}, 7)});
    EXPECT_EQ(engine.comm().bytes_sent() - before, (5 + 5 + 6) * (2 * layers + 1) * 4 * dim);
  }
}

TEST(RanksOfAnEngine, texts_of_one_batch_are_those_of_each_request_alone) {
  const GoldenCase c("mixtral-base");
  EngineOptions o = c.options(Dtype::bf16);
  o.speculative_tokens = 3;
  o.prefill_chunk = 3;
  RankedEngine engine(o, 3);
  std::vector<Request> requests;
  for (const GoldenRun& r : c.runs) requests.push_back(scored(r.prompt, 12));
  const auto got = engine->run(std::move(requests));
  for (size_t i = 0; i < got.size(); ++i) {
    const auto alone = engine->run({scored(c.runs[i].prompt, 12)})[0];
    expect_equal_tokens(*got[i], *alone, c.runs[i].adapter);
  }
}

// Adapters come, go, are moved and read again on all ranks, while requests run.
TEST(RanksOfAnEngine, adapters_that_do_not_fit_together_take_turns) {
  const GoldenCase c("mixtral-base");
  EngineOptions o = c.options(Dtype::f32);
  o.adapter_memory = 500 << 10;
  o.adapter_cycle_seconds = 0;
  RankedEngine engine(o, 3);
  expect_golden(c, kGoldenF32, engine->run(logits_requests(c)));
  expect_golden(c, kGoldenF32, engine->run(logits_requests(c)));
  EXPECT_GT((*engine)->stats().adapters_device.evictions, 0);
}

TEST(RanksOfAnEngine, an_adapter_that_one_rank_cannot_read_fails_alone) {
  namespace fs = std::filesystem;
  const fs::path folder = fs::temp_directory_path() / ("lorry-ranks-" + std::to_string(getpid()));
  fs::remove_all(folder);
  fs::create_directories(folder / "one");
  fs::create_directories(folder / "other");
  fs::copy(golden("mixtral-base/adapters/attn-r8"), folder / "one" / "x");
  fs::copy(golden("mixtral-base/adapters/attn-r8-b"), folder / "other" / "x");
  EngineOptions o = golden_options("mixtral-base", {"qv-r4-alpha32"});
  o.adapter_root = folder / "one";
  const Prompt broken{{1, 2, 3}, "x"};
  const Prompt good{{1, 2, 3}, "qv-r4-alpha32"};
  {
    // Rank 1 is on a host with other files under the same path.
    RankedEngine engine(o, 2, folder / "other");
    const auto got = engine->run({logits_request(broken), logits_request(good)});
    ASSERT_EQ(got[0]->finish->reason, FinishReason::failed);
    EXPECT_NE(std::string(got[0]->finish->error->what()).find("not the same on all hosts"),
              std::string::npos)
        << got[0]->finish->error->what();
    EXPECT_EQ(got[1]->n_rows, 3);
  }
  fs::remove_all(folder);
}

class QuantisedOnRanks : public testing::TestWithParam<int> {};

TEST_P(QuantisedOnRanks, f32_logits_of_every_quantised_checkpoint) {
  int cases = 0;
  for (const auto& entry : std::filesystem::directory_iterator(golden("quantised"))) {
    if (!entry.is_directory()) continue;
    const std::string folder = entry.path();
    SCOPED_TRACE(folder);
    const auto file = SafetensorsFile::open(folder + "/logits.safetensors", Access::read);
    const json::value doc = parse_json_file(folder + "/case.json");
    on_ranks(GetParam(), [&](const std::shared_ptr<Comm>& comm) {
      EngineOptions o = golden_options("mixtral-base", {});
      o.model = folder;
      o.threads = 1;
      o.comm = comm;
      Log log({LogLevel::error});
      const auto model = load_model(o, log);
      for (size_t i = 0; i < doc.at("prompts").as_array().size(); ++i) {
        const Tensor got =
            logits_of(*model, json::value_to<std::vector<int32_t>>(doc.at("prompts").at(i)), {});
        if (comm->rank() != 0) continue;
        const Tensor want = file.tensor("p" + std::to_string(i) + ".logits");
        EXPECT_LE(largest_difference(got, want), 2e-4) << i;
      }
    });
    ++cases;
  }
  EXPECT_GE(cases, 10);
}
INSTANTIATE_TEST_SUITE_P(Counts, QuantisedOnRanks, testing::Values(2, 3));

TEST(FoldingOnRanks, a_folded_adapter_is_the_base_model_of_all_who_name_none) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"mixtral-base", "all-linear-rslora-r16"},
      {"mixtral-base", "embed-lm-head-r4"},
      {"dbrx-base", "everything-r8"},
      {"dbrx-base", "dora-wqkv-r8"}};
  for (const auto& [model, adapter] : cases) {
    const GoldenCase c(model);
    EngineOptions o = golden_options(model, {});
    o.folded_adapter = golden(model + "/adapters/" + adapter);
    RankedEngine engine(o, 3);
    int compared = 0;
    for (const GoldenRun& r : c.runs) {
      if (r.adapter != adapter) continue;
      expect_f32(r, *engine->run({logits_request({r.prompt.tokens, ""})})[0], adapter);
      ++compared;
    }
    EXPECT_GT(compared, 0);
  }
}

TEST(FoldingOnRanks, what_needs_the_rows_of_the_folded_model_is_refused) {
  EngineOptions o = golden_options("mixtral-base", {"dora-qv-r8", "attn-r8"});
  o.folded_adapter = golden("mixtral-base/adapters/attn-r8-b");
  RankedEngine engine(o, 2);
  const auto got =
      engine->run({logits_request({{1, 2}, "dora-qv-r8"}), logits_request({{1, 2}, "attn-r8"})});
  ASSERT_EQ(got[0]->finish->reason, FinishReason::failed);
  EXPECT_NE(std::string(got[0]->finish->error->what()).find("merged into the weights"),
            std::string::npos);
  EXPECT_EQ(got[1]->n_rows, 2);
}

TEST(BestOnRanks, is_the_largest_of_the_gathered_logits) {
  std::vector<int32_t> ids(24);
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i * 13 + 1);
  const auto n = static_cast<int32_t>(ids.size());
  std::vector<int32_t> order(ids.size());
  std::iota(order.begin(), order.end(), 0);
  const std::vector<int32_t> lens(ids.size(), n), cu{0, n}, kv{n}, table{0, 1}, which{-1};
  const auto run_rank = [&](const std::shared_ptr<Comm>& comm) {
    EngineOptions o = golden_options("mixtral-base", {});
    o.threads = 1;
    o.comm = comm;
    Log log({LogLevel::error});
    const auto model = load_model(o, log);
    ForwardInput in{ids, order, lens, cu, kv, table, 2, order, which, order};
    const int64_t before = comm->bytes_sent();
    const ForwardOutput all = model->lm->forward(in, model->layers, {});
    const int64_t with_logits = comm->bytes_sent() - before;
    std::vector<int32_t> expected;
    const auto check = [&](const Tensor& best) {
      if (comm->rank() != 0) return;
      ASSERT_EQ(best.cols(), n);
      for (size_t r = 0; r < expected.size(); ++r) {
        EXPECT_EQ(best.row<const int32_t>(0)[r], expected[r]) << "row " << r;
      }
    };
    for (int64_t r = 0; comm->rank() == 0 && r < n; ++r) {
      const float* row = all.logits.row<const float>(r);
      expected.push_back(arg_max({row, static_cast<size_t>(all.logits.cols())}));
    }
    check(all.best);
    in.want = Want::best;
    const ForwardOutput alone = model->lm->forward(in, model->layers, {});
    EXPECT_FALSE(alone.logits);
    check(alone.best);
    // docs/scaling.md: what is not sent.
    const int64_t vocab = comm->rank() == 0 ? 0 : all.logits.cols();
    EXPECT_EQ(with_logits - (comm->bytes_sent() - before - with_logits), 4 * vocab * n);
  };
  for (const int ranks : {1, 2, 3}) on_ranks(ranks, run_rank);
}

// Both kinds of heads: with output matrices of their own and through the model's.
TEST(MedusaOnRanks, guesses_agree_with_numpy) {
  const json::value doc = parse_json_file(golden("medusa/golden.json"));
  const auto ids = json::value_to<std::vector<int32_t>>(doc.at("prompt"));
  const auto file = SafetensorsFile::open(golden("medusa/golden.safetensors"), Access::read);
  const auto n = static_cast<int32_t>(ids.size());
  std::vector<int32_t> order(ids.size());
  std::iota(order.begin(), order.end(), 0);
  const std::vector<int32_t> lens(ids.size(), n), cu{0, n}, kv{n}, table{0, 1}, which{0};
  const auto run_rank = [&](const std::shared_ptr<Comm>& comm) {
    EngineOptions o = golden_options("mixtral-base", {});
    o.threads = 1;
    o.max_medusa_heads = 4;
    o.comm = comm;
    Log log({LogLevel::error});
    const auto model = load_model(o, log);
    AdapterLimits limits;
    limits.max_medusa_heads = 4;
    for (const json::value& c : doc.at("cases").as_array()) {
      const std::string name = c.at("adapter").as_string().c_str();
      const auto adapter = load_adapter(golden("medusa/" + name), adapter_target(*model), limits);
      const std::vector<AdapterView> views{adapter->view()};
      const Tensor got = model->lm
                             ->forward({ids, order, lens, cu, kv, table, 2, order, which, order},
                                       model->layers, views)
                             .speculative;
      if (comm->rank() != 0) continue;
      const Tensor want = file.tensor(name);
      ASSERT_EQ(got.shape, want.shape) << name;
      for (int64_t r = 0; r < got.rows(); ++r) {
        for (int64_t v = 0; v < got.cols(); ++v) {
          ASSERT_NEAR(got.row<const float>(r)[v], want.row<const float>(r)[v], 2e-4) << name;
        }
      }
    }
  };
  for (const int ranks : {2, 3}) on_ranks(ranks, run_rank);
}

}  // namespace
}  // namespace lorry::test
