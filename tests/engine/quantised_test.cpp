// Quantised checkpoints, packed by the projects that define the formats, against the logits that
// transformers gives with their dequantised weights; and models quantised at load.
#include <algorithm>
#include <cmath>
#include <filesystem>

#include <boost/json/value_to.hpp>
#include <gtest/gtest.h>

#include "adapters/adapter.h"
#include "base/json.h"
#include "engine/harness.h"
#include "engine/one_sequence.h"
#include "weights/safetensors.h"

namespace lorry::test {
namespace {

std::vector<std::string> quantised_cases() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(golden("quantised"))) {
    if (entry.is_directory()) names.push_back(entry.path().filename());
  }
  std::sort(names.begin(), names.end());
  return names;
}

struct QuantisedCase {
  explicit QuantisedCase(const std::string& name)
      : folder(golden("quantised/" + name)),
        file(SafetensorsFile::open(folder + "/logits.safetensors", Access::read)) {
    const json::value doc = parse_json_file(folder + "/case.json");
    for (const json::value& p : doc.at("prompts").as_array()) {
      prompts.push_back(json::value_to<std::vector<int32_t>>(p));
    }
  }
  Tensor logits(size_t prompt) const {
    return file.tensor("p" + std::to_string(prompt) + ".logits");
  }

  std::string folder;
  SafetensorsFile file;
  std::vector<std::vector<int32_t>> prompts;
};

EngineOptions options_of(const std::string& model, Dtype dtype) {
  EngineOptions o;
  o.device = test_device();
  o.model = model;
  o.dtype = dtype;
  o.threads = 2;
  o.kv_tokens = 2048;
  o.adapter_memory = 1 << 20;
  o.check_ops = true;
  return o;
}

// Of all logits: the largest and the mean absolute difference, and the spread of what is wanted.
struct Difference {
  double largest = 0, mean = 0, deviation = 0;
};

Difference compare(const QuantisedCase& c, const EngineOptions& options) {
  Log log({.level = LogLevel::error});
  const auto model = load_model(options, log);
  Difference d;
  double square = 0, sum = 0, n = 0;
  for (size_t i = 0; i < c.prompts.size(); ++i) {
    const Tensor want = c.logits(i);
    const Tensor got = logits_of(*model, c.prompts[i], {});
    d.largest = std::max(d.largest, double{largest_difference(got, want)});
    for (int64_t t = 0; t < want.shape[0]; ++t) {
      for (int64_t v = 0; v < want.shape[1]; ++v) {
        const double w = want.row<const float>(t)[v];
        d.mean += std::abs(got.row<const float>(t)[v] - w);
        sum += w;
        square += w * w;
        ++n;
      }
    }
  }
  d.mean /= n;
  d.deviation = std::sqrt(square / n - (sum / n) * (sum / n));
  return d;
}

class Quantised : public testing::TestWithParam<std::string> {};

TEST_P(Quantised, f32_logits_are_those_of_the_dequantised_weights) {
  const QuantisedCase c(GetParam());
  EXPECT_LE(compare(c, options_of(c.folder, Dtype::f32)).largest, 2e-4);
}

// Activations are rounded to 8 bits (or with fp8 to bf16).
TEST_P(Quantised, bf16_logits_are_near) {
  const QuantisedCase c(GetParam());
  const Difference d = compare(c, options_of(c.folder, Dtype::bf16));
  EXPECT_LE(d.mean, 0.05 * d.deviation);
}

TEST_P(Quantised, quantising_it_again_is_refused) {
  EngineOptions o = options_of(golden("quantised/" + GetParam()), Dtype::bf16);
  o.formats.linears = {WeightFormat::Kind::int8, 0, false};
  Log log({.level = LogLevel::error});
  try {
    const auto model = load_model(o, log);
    FAIL() << "it was loaded";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("is quantised already"), std::string::npos) << e.what();
  }
}

// The weights of `quantised`, as linear() multiplies by them, in place of those of `plain`.
void copy_weights(LoadedModel& plain, const LoadedModel& quantised) {
  const auto copy_linear = [&](Linear& to, const Linear& from) {
    std::vector<float> memory(static_cast<size_t>(from.w.out * from.w.in));
    const Tensor rows_of = view(memory.data(), Dtype::f32, {from.w.out, from.w.in});
    for (int64_t g = 0; g < from.w.groups; ++g) {
      quantised.ops->unpack(rows_of, from.w, g, 0);
      plain.ops->pack(to.w, g, 0, rows_of);
    }
  };
  ModelWeights& to = plain.lm->weights();
  const ModelWeights& from = quantised.lm->weights();
  for (size_t i = 0; i < to.layers.size(); ++i) {
    copy_linear(to.layers[i].wqkv, from.layers[i].wqkv);
    copy_linear(to.layers[i].wo, from.layers[i].wo);
    copy_linear(to.layers[i].gate_up, from.layers[i].gate_up);
    copy_linear(to.layers[i].down, from.layers[i].down);
  }
  copy_linear(to.head, from.head);
}

class QuantisedBase : public testing::TestWithParam<std::tuple<std::string, WeightFormat>> {};

// Every kind of adapter, DoRA's norms among them: what it does follows from the values of the
// weights, however they are stored.
TEST_P(QuantisedBase, adapters_act_as_on_plain_weights_of_the_same_values) {
  const auto& [name, format] = GetParam();
  Log log({.level = LogLevel::error});
  EngineOptions o = golden_options(name == "mixtral-dora" ? "mixtral-base" : name, {});
  const auto plain = load_model(o, log);
  o.formats = {format, format};
  const auto quantised = load_model(o, log);
  copy_weights(*plain, *quantised);
  const std::vector<int32_t> ids{1, 17, 44, 5, 90, 23, 8};
  int compared = 0;
  for (const auto& entry : std::filesystem::directory_iterator(golden(name + "/adapters"))) {
    const auto a = load_adapter(entry.path(), adapter_target(*plain), {});
    const auto b = load_adapter(entry.path(), adapter_target(*quantised), {});
    const Tensor want = logits_of(*plain, ids, {a->view()});
    const Tensor got = logits_of(*quantised, ids, {b->view()});
    // fp8 is scaled after the sum.
    const float bound = format.kind == WeightFormat::Kind::fp8 ? 2e-4F : 0.0F;
    EXPECT_LE(largest_difference(got, want), bound) << entry.path();
    ++compared;
  }
  EXPECT_GT(compared, 0);
}

TEST(QuantisedFolding, an_adapter_is_not_merged_into_quantised_weights) {
  EngineOptions o = golden_options("mixtral-base", {});
  o.formats.linears = {WeightFormat::Kind::int8, 0, false};
  o.folded_adapter = golden("mixtral-base/adapters/attn-r8");
  Log log({.level = LogLevel::error});
  try {
    const auto model = load_model(o, log);
    FAIL() << "it was merged";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::unsupported);
    EXPECT_NE(std::string(e.what()).find("quantised weights"), std::string::npos) << e.what();
  }
}

TEST(QuantisedModel, its_formats_are_those_of_the_checkpoint) {
  Log log({.level = LogLevel::error});
  const auto model =
      load_model(options_of(golden("quantised/gptq-v2-int4-g64-act-order-head"), Dtype::bf16), log);
  const WeightFormats& f = model->info.spec.formats;
  EXPECT_EQ(f.linears.kind, WeightFormat::Kind::int4);
  EXPECT_EQ(f.linears.group, 64);
  EXPECT_EQ(f.head, f.linears);
}

std::string base_name(const testing::TestParamInfo<std::tuple<std::string, WeightFormat>>& p) {
  const auto& [name, format] = p.param;
  return test_name(name) + (format.kind == WeightFormat::Kind::int8   ? "_int8"
                            : format.kind == WeightFormat::Kind::int4 ? "_int4"
                                                                      : "_fp8");
}

INSTANTIATE_TEST_SUITE_P(
    Models, QuantisedBase,
    testing::Combine(testing::Values("mixtral-base", "mixtral-dora", "dbrx-base",
                                     "mixtral-v5-target-parameters"),
                     testing::Values(WeightFormat{WeightFormat::Kind::int8, 0, false},
                                     WeightFormat{WeightFormat::Kind::int4, 32, false},
                                     WeightFormat{WeightFormat::Kind::fp8, 0, false})),
    base_name);

INSTANTIATE_TEST_SUITE_P(Checkpoints, Quantised, testing::ValuesIn(quantised_cases()),
                         [](const auto& test) { return test_name(test.param); });

}  // namespace
}  // namespace lorry::test
