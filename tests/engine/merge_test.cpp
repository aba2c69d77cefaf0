// Merged adapters in a model: logits against PEFT's add_weighted_adapter, for every golden merge.
#include <algorithm>
#include <cmath>
#include <numeric>

#include <boost/json/value_to.hpp>
#include <gtest/gtest.h>

#include "adapters/adapter.h"
#include "base/json.h"
#include "engine/harness.h"
#include "engine/loaded_model.h"
#include "weights/safetensors.h"

namespace lorry::test {
namespace {

std::string text(const json::value& v) { return std::string(v.as_string()); }

MergeSpec spec_of(const json::object& merge) {
  using S = MergeSpec::Strategy;
  MergeSpec spec;
  const std::string name = text(merge.at("combination_type"));
  for (const S s : {S::linear, S::cat, S::ties, S::magnitude_prune}) {
    if (name == to_string(s)) spec.strategy = s;
  }
  EXPECT_EQ(name, to_string(spec.strategy));
  if (const json::value* d = merge.if_contains("density")) spec.density = d->to_number<double>();
  if (const json::value* m = merge.if_contains("majority_sign_method");
      m != nullptr && text(*m) == "frequency") {
    spec.majority_sign = MergeSpec::MajoritySign::frequency;
  }
  return spec;
}

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
    return AdapterFolder::open_merged(parts, spec_of(merge), target, {})->read();
  }

  // Of one sequence in blocks 0, 1, ...
  Tensor logits(const Adapter& adapter, const std::vector<int32_t>& ids) {
    const auto n = static_cast<int32_t>(ids.size());
    std::vector<int32_t> positions(ids.size());
    std::iota(positions.begin(), positions.end(), 0);
    std::vector<int32_t> table((ids.size() + 15) / 16);
    std::iota(table.begin(), table.end(), 0);
    const std::vector<int32_t> lens(ids.size(), n), cu{0, n}, kv{n}, which{0};
    const std::vector<AdapterView> views{adapter.view()};
    const ForwardInput in{
        ids,       positions, lens,     cu, kv, table, static_cast<int32_t>(table.size()),
        positions, which,     positions};
    return model_->lm->forward(in, model_->layers, views).logits;
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
    const Tensor got = logits(*adapter, json::value_to<std::vector<int32_t>>(ids));
    const Tensor want = file.tensor(text(m.at("logits")));
    ASSERT_EQ(got.shape, want.shape);
    float worst = 0;
    for (int64_t t = 0; t < want.shape[0]; ++t) {
      for (int64_t v = 0; v < want.shape[1]; ++v) {
        worst = std::max(worst, std::abs(got.row<const float>(t)[v] - want.row<const float>(t)[v]));
      }
    }
    EXPECT_LE(worst, 2e-4F) << text(m.at("key"));
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, GoldenMerges,
                         testing::Values("mixtral-base", "dbrx-base", "mixtral-merges",
                                         "dbrx-merges"),
                         [](const auto& p) {
                           std::string name = p.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace lorry::test
