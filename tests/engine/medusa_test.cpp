// Medusa heads: their guesses against numpy (tools/make_medusa_cases.py), and that answers are the
// same with them, bit by bit.
#include <algorithm>
#include <cstring>
#include <numeric>
#include <random>

#include <boost/json/value_to.hpp>
#include <gtest/gtest.h>

#include "adapters/support.h"
#include "base/files.h"
#include "base/json.h"
#include "engine/harness.h"
#include "lorry/model.h"
#include "weights/safetensors.h"

namespace lorry::test {
namespace {

struct MedusaCase {
  std::string adapter;
  std::string same_text_as;  // LoRA adapter beside the heads, or none
};

std::vector<MedusaCase> cases() {
  std::vector<MedusaCase> out;
  const json::value doc = parse_json_file(golden("medusa/golden.json"));
  for (const json::value& c : doc.at("cases").as_array()) {
    const json::value& lora = c.at("same_text_as");
    out.push_back(
        {c.at("adapter").as_string().c_str(), lora.is_null() ? "" : lora.as_string().c_str()});
  }
  return out;
}

std::vector<int32_t> golden_prompt() {
  const json::value doc = parse_json_file(golden("medusa/golden.json"));
  return json::value_to<std::vector<int32_t>>(doc.at("prompt"));
}

ModelOptions model_options() {
  ModelOptions o;
  o.dtype = Dtype::f32;
  o.threads = 2;
  o.limits.max_tokens = 128;
  o.limits.max_logit_rows = 128;
  o.limits.max_sequences = 8;
  o.limits.max_medusa_heads = 4;
  o.kv_blocks = 32;
  return o;
}

// The prompt once for each adapter, all rows with logits, as one batch.
ForwardOutput forward(Model& model, const std::vector<int32_t>& ids,
                      const std::vector<int32_t>& adapters) {
  const auto n = static_cast<int32_t>(ids.size());
  std::vector<int32_t> all, positions, lens, cu{0}, kv, tables, slots, rows;
  for (size_t s = 0; s < adapters.size(); ++s) {
    all.insert(all.end(), ids.begin(), ids.end());
    for (int32_t p = 0; p < n; ++p) {
      positions.push_back(p);
      lens.push_back(n);
      slots.push_back(static_cast<int32_t>(2 * s) * 16 + p);
      rows.push_back(static_cast<int32_t>(rows.size()));
    }
    cu.push_back(cu.back() + n);
    kv.push_back(n);
    tables.push_back(static_cast<int32_t>(2 * s));
    tables.push_back(static_cast<int32_t>(2 * s) + 1);
  }
  return model.forward({all, positions, lens, cu, kv, tables, 2, slots, adapters, rows});
}

TEST(Medusa, guesses_agree_with_numpy_alone_and_in_a_mixed_batch) {
  const std::vector<int32_t> ids = golden_prompt();
  const auto file = SafetensorsFile::open(golden("medusa/golden.safetensors"), Access::read);
  Model model(golden("mixtral-base/model"), model_options());
  const int32_t lora = model.load_adapter(golden("mixtral-base/adapters/attn-r8"));
  const auto n = static_cast<int64_t>(ids.size());
  std::vector<int32_t> batch{-1};
  std::vector<Tensor> expected{{}};
  for (const MedusaCase& c : cases()) {
    batch.push_back(model.load_adapter(golden("medusa/" + c.adapter)));
    expected.push_back(file.tensor(c.adapter));
  }
  batch.push_back(lora);
  expected.push_back({});

  EXPECT_FALSE(forward(model, ids, {-1, lora}).speculative);
  std::vector<std::vector<float>> alone(batch.size());
  for (size_t i = 0; i < batch.size(); ++i) {
    if (!expected[i]) continue;
    const Tensor got = forward(model, ids, {batch[i]}).speculative;
    ASSERT_EQ(got.shape, expected[i].shape);
    for (int64_t r = 0; r < got.rows(); ++r) {
      const float* row = got.row<const float>(r);
      alone[i].insert(alone[i].end(), row, row + got.cols());
      for (int64_t v = 0; v < got.cols(); ++v) {
        ASSERT_NEAR(row[v], expected[i].row<const float>(r)[v], 2e-4) << i << " " << r;
      }
    }
  }
  // Heads that a row's adapter does not have are 0, the others have the same bits.
  const Tensor got = forward(model, ids, batch).speculative;
  const int64_t most = 3;
  ASSERT_EQ(got.shape, (Shape{n * static_cast<int64_t>(batch.size()), most, 320}));
  for (size_t i = 0; i < batch.size(); ++i) {
    const int64_t heads = expected[i] ? expected[i].shape[1] : 0;
    for (int64_t r = 0; r < n; ++r) {
      for (int64_t head = 0; head < most; ++head) {
        const float* row = got.row<const float>((static_cast<int64_t>(i) * n + r) * most + head);
        if (head < heads) {
          const float* want = alone[i].data() + (r * heads + head) * got.cols();
          EXPECT_EQ(std::memcmp(row, want, static_cast<size_t>(got.cols()) * 4), 0) << i;
        } else {
          EXPECT_TRUE(std::all_of(row, row + got.cols(), [](float x) { return x == 0; })) << i;
        }
      }
    }
  }
}

// Three heads that always guess the same token.
void write_stubborn_heads(const std::string& folder, int32_t token) {
  constexpr int64_t kDim = 64, kVocab = 320;
  std::vector<float> zeros(kDim * kDim, 0), bias(kDim, 0), output(kVocab * kDim, 0);
  bias[0] = 1000;
  output[static_cast<size_t>(token * kDim)] = 1;
  std::map<std::string, Tensor> tensors;
  for (const std::string head : {"0", "1", "2"}) {
    tensors[head + ".0.linear.weight"] = view(zeros.data(), Dtype::f32, {kDim, kDim});
    tensors[head + ".0.linear.bias"] = view(bias.data(), Dtype::f32, {kDim});
    tensors[head + ".1.weight"] = view(output.data(), Dtype::f32, {kVocab, kDim});
  }
  write_safetensors(folder + "/medusa_lm_head.safetensors", tensors);
  write_file(folder + "/config.json", R"({"medusa_num_heads": 3, "medusa_num_layers": 1})");
}

class MedusaEngine : public testing::TestWithParam<Dtype> {
 protected:
  MedusaEngine() { write_stubborn_heads(stubborn_.path(), 7); }

  EngineOptions options() const {
    EngineOptions o = golden_options("mixtral-base", {"lm-head-r8", "attn-r8"});
    o.dtype = GetParam();
    o.max_sequences = 24;
    o.max_medusa_heads = 3;
    for (const MedusaCase& c : cases()) {
      o.adapters.emplace_back(c.adapter, golden("medusa/" + c.adapter));
    }
    o.adapters.emplace_back("stubborn", stubborn_.path());
    return o;
  }
  // Requests with heads, and the same without them.
  void add(const std::string& adapter, const std::string& plain, bool sevens) {
    Prompt p;
    const size_t length = 1 + random_() % 40;
    for (size_t k = 0; k < length; ++k) p.tokens.push_back(static_cast<int32_t>(random_() % 256));
    Request r = greedy_request(p, 50);
    r.sampling.logprobs = true;
    r.sampling.alternatives = 3;
    r.sampling.sample = random_() % 2 == 0;
    r.sampling.temperature = 0.7F;
    r.sampling.seed = random_();
    // Sevens most of the time, so that some guesses of stubborn heads are right and some are not.
    if (sevens) r.sampling.logit_bias = {{7, 9.0F}};
    r.adapter = adapter;
    with_.push_back(r);
    r.adapter = plain;
    without_.push_back(r);
  }
  void add_all() {
    for (int i = 0; i < 3; ++i) {
      for (const MedusaCase& c : cases()) add(c.adapter, c.same_text_as, i == 0);
      add("stubborn", "", true);
      add("stubborn", "", i == 0);
      add("attn-r8", "attn-r8", true);
      add("", "", true);
    }
  }
  static void expect_same(const std::vector<std::shared_ptr<Collector>>& got,
                          const std::vector<std::shared_ptr<Collector>>& want) {
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < got.size(); ++i) {
      ASSERT_EQ(got[i]->ids(), want[i]->ids()) << i;
      for (size_t k = 0; k < got[i]->tokens.size(); ++k) {
        EXPECT_EQ(got[i]->tokens[k].logprob, want[i]->tokens[k].logprob) << i;
      }
      EXPECT_EQ(got[i]->finish->reason, want[i]->finish->reason) << i;
    }
  }

  TempFolder stubborn_;
  std::mt19937_64 random_{9};
  std::vector<Request> with_, without_;
};

TEST_P(MedusaEngine, answers_are_the_same_with_heads_alone_and_in_a_batch) {
  add_all();
  TestEngine plain(options());
  const auto want = plain.run(without_);
  TestEngine engine(options());
  expect_same(engine.run(with_), want);
  for (size_t i = 0; i < with_.size(); ++i) expect_same(engine.run({with_[i]}), {want[i]});
  EXPECT_GT(engine->stats().draft_tokens_kept, 0);
  EXPECT_GT(engine->stats().draft_tokens, engine->stats().draft_tokens_kept);
  EXPECT_EQ(plain->stats().draft_tokens, 0);
}

TEST_P(MedusaEngine, answers_are_the_same_with_ngrams_preemption_and_few_rows) {
  add_all();
  TestEngine plain(options());
  const auto want = plain.run(without_);
  EngineOptions o = options();
  o.speculative_tokens = 4;
  o.kv_tokens = 256;
  o.max_sequences = 8;
  o.max_batch_tokens = 40;
  o.max_logit_rows = 14;
  TestEngine engine(o);
  for (int round = 0; round < 20 && engine->stats().preemptions == 0; ++round) {
    expect_same(engine.run(with_), want);
  }
  EXPECT_GT(engine->stats().preemptions, 0);
  EXPECT_GT(engine->stats().draft_tokens_kept, 0);
}

TEST_P(MedusaEngine, right_guesses_save_steps) {
  Request r = greedy_request({{1, 5, 9}, "stubborn"}, 60);
  r.sampling.logit_bias = {{7, 1e4F}};
  TestEngine engine(options());
  const auto got = engine.run({r})[0];
  EXPECT_EQ(got->ids(), std::vector<int32_t>(60, 7));
  EXPECT_GT(got->finish->skipped_tokens, 35);
  EXPECT_LT(engine->stats().steps, 25);
}

TEST_P(MedusaEngine, heads_are_refused_where_none_are_admitted) {
  EngineOptions o = options();
  o.max_medusa_heads = 0;
  TestEngine engine(o);
  const auto got = engine.run({greedy_request({{1, 5}, "stubborn"}, 4)})[0];
  EXPECT_EQ(got->finish->reason, FinishReason::failed);
  EXPECT_NE(std::string(got->finish->error->what()).find("--max-medusa-heads"), std::string::npos);
}

INSTANTIATE_TEST_SUITE_P(Types, MedusaEngine, testing::Values(Dtype::f32, Dtype::bf16),
                         [](const auto& p) { return std::string(to_string(p.param)); });

}  // namespace
}  // namespace lorry::test
