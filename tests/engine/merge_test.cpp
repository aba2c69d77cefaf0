// Merged adapters in a model: logits against PEFT's add_weighted_adapter, for every golden merge.
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

class GoldenMerges : public testing::TestWithParam<std::string> {
 protected:
  GoldenMerges() : log_({LogLevel::error}) {
    EngineOptions o = golden_options(GetParam(), {});
    const json::value doc = parse_json_file(golden(GetParam() + "/golden.json"));
    if (const json::value* elsewhere = doc.as_object().if_contains("model")) {
      o.model = golden(GetParam() + "/" + text(*elsewhere));
    }
    model_ = load_model(o, log_);
  }

  std::unique_ptr<Adapter> merged(const json::object& merge) const {
    std::vector<MergePart> parts;
    const json::array& names = merge.at("adapters").as_array();
    for (size_t i = 0; i < names.size(); ++i) {
      parts.push_back({golden(GetParam() + "/adapters/" + text(names[i])),
                       merge.at("weights").as_array()[i].to_number<float>(), text(names[i])});
    }
    const AdapterTarget target = adapter_target(*model_);
    return AdapterFolder::open_merged(parts, golden_merge(merge), target, {})->read();
  }

  Log log_;
  std::unique_ptr<LoadedModel> model_;
};

TEST_P(GoldenMerges, logits_are_those_of_peft) {
  const json::value doc = parse_json_file(golden(GetParam() + "/golden.json"));
  const auto file = SafetensorsFile::open(golden(GetParam() + "/golden.safetensors"), Access::read);
  const json::array& merges = doc.at("merges").as_array();
  EXPECT_FALSE(merges.empty());
  for (const json::value& m : merges) {
    const json::value& ids = doc.at("prompts").at(text(m.at("prompt")));
    const auto adapter = merged(m.as_object());
    const Tensor got =
        logits_of(*model_, json::value_to<std::vector<int32_t>>(ids), {adapter->view()});
    const float worst = largest_difference(got, file.tensor(text(m.at("logits"))));
    EXPECT_LE(worst, 2e-4F) << text(m.at("key"));
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, GoldenMerges,
                         testing::Values("mixtral-base", "dbrx-base", "mixtral-merges",
                                         "dbrx-merges"),
                         [](const auto& p) { return test_name(p.param); });

}  // namespace
}  // namespace lorry::test
