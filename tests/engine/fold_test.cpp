// Adapters folded into the base weights: the logits that PEFT gives for the adapter.
#include "models/fold.h"

#include <cmath>

#include <boost/json/value_to.hpp>
#include <gtest/gtest.h>

#include "adapters/adapter.h"
#include "adapters/support.h"
#include "base/json.h"
#include "engine/harness.h"
#include "engine/loaded_model.h"
#include "engine/one_sequence.h"
#include "weights/safetensors.h"

namespace lorry::test {
namespace {

struct FoldCase {
  std::string name;
  std::vector<std::string> adapters;
};

const std::vector<FoldCase> kCases = {
    {"mixtral-base", {"all-linear-rslora-r16", "experts-r8", "lm-head-r8", "embed-lm-head-r4"}},
    {"mixtral-v5-target-parameters", {"fused-r8"}},
    {"dbrx-base", {"everything-r8", "dora-wqkv-r8"}}};

class Fold : public testing::TestWithParam<FoldCase> {};

TEST_P(Fold, a_folded_adapter_is_the_base_model_of_all_who_name_none) {
  const FoldCase& c = GetParam();
  const json::value doc = parse_json_file(golden(c.name + "/golden.json"));
  const auto file = SafetensorsFile::open(golden(c.name + "/golden.safetensors"), Access::read);
  Log log({LogLevel::error});
  for (const std::string& name : c.adapters) {
    const auto model = load_model(golden_options(c.name, {}), log);
    const auto adapter =
        load_adapter(golden(c.name + "/adapters/" + name), adapter_target(*model), {});
    fold_adapter(model->lm->weights(), adapter->view(), *model->ops);
    int compared = 0;
    for (const json::value& run : doc.at("runs").as_array()) {
      if (run.at("adapter").is_null() || text(run.at("adapter")) != name) continue;
      const auto ids = json::value_to<std::vector<int32_t>>(
          doc.at("prompts").at(std::string_view(run.at("prompt").as_string())));
      EXPECT_LE(largest_difference(logits_of(*model, ids, {}), file.tensor(text(run.at("logits")))),
                2e-4F)
          << name;
      ++compared;
    }
    EXPECT_GT(compared, 0) << name;
  }
}

TEST(Folding, an_engine_starts_with_a_folded_adapter_and_others_add_to_it) {
  EngineOptions o = golden_options("mixtral-base", {"attn-r8", "attn-r8-b"});
  const Prompt plain{{1, 5, 9, 12, 33, 7}, ""};
  const auto first = TestEngine(o).run({logits_request(plain)})[0]->logits;
  const auto adapted = TestEngine(o).run({logits_request({plain.tokens, "attn-r8"})})[0]->logits;
  o.folded_adapter = golden("mixtral-base/adapters/attn-r8");
  TestEngine engine(o);
  const auto folded = engine.run({logits_request(plain)})[0]->logits;
  ASSERT_EQ(folded.size(), adapted.size());
  float worst = 0;
  for (size_t i = 0; i < folded.size(); ++i) {
    worst = std::max(worst, std::abs(folded[i] - adapted[i]));
  }
  EXPECT_LE(worst, 2e-4F);
  EXPECT_NE(folded, first);
  EXPECT_NE(engine.run({logits_request({plain.tokens, "attn-r8-b"})})[0]->logits, folded);
}

INSTANTIATE_TEST_SUITE_P(Cases, Fold, testing::ValuesIn(kCases),
                         [](const auto& p) { return test_name(p.param.name); });

}  // namespace
}  // namespace lorry::test
