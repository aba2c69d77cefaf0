// Models that were packed: the same bits as the original with --quantize, with every adapter, and
// files that do not fit their config.json.
#include <filesystem>

#include <gmock/gmock.h>

#include "adapters/adapter.h"
#include "engine/harness.h"
#include "engine/one_sequence.h"
#include "engine/packed_folder.h"

namespace lorry::test {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using Kind = WeightFormat::Kind;

const std::vector<int32_t> kTokens{1, 5, 9, 12, 33, 7, 40, 2, 61, 17};

EngineOptions options_of(const std::string& model_case, Dtype dtype) {
  EngineOptions o = golden_options(model_case, {});
  o.dtype = dtype;
  return o;
}

// Logits without an adapter, and with each.
std::vector<std::vector<float>> all_logits(const EngineOptions& o,
                                           const std::vector<std::string>& adapters) {
  Log log({.level = LogLevel::error});
  const auto model = load_model(o, log);
  EXPECT_EQ(model->memory.weights, model->lm->weights().bytes);
  std::vector<std::vector<float>> all{copy_of(logits_of(*model, kTokens, {}))};
  for (const std::string& folder : adapters) {
    const auto adapter = load_adapter(folder, adapter_target(*model), {});
    all.push_back(copy_of(logits_of(*model, kTokens, {adapter->view()})));
  }
  return all;
}

std::string refusal(const EngineOptions& o) {
  Log log({.level = LogLevel::error});
  try {
    load_model(o, log);
  } catch (const Error& e) {
    return e.what();
  }
  return "it was loaded";
}

struct PackedCase {
  std::string model;
  std::vector<std::string> adapters;
};

class Packed : public testing::TestWithParam<PackedCase> {};

TEST_P(Packed, logits_are_those_of_quantising_the_original_bit_for_bit) {
  const PackedCase& c = GetParam();
  std::vector<std::string> adapters;
  for (const std::string& a : c.adapters) {
    adapters.push_back(golden(a.find('/') == std::string::npos ? c.model + "/adapters/" + a : a));
  }
  for (const WeightFormat format : {WeightFormat{Kind::int8, 0, false},
                                    {Kind::int4, 128, false},
                                    {Kind::int4, 32, false},
                                    {Kind::fp8, 0, false}}) {
    for (const bool head : {false, true}) {
      const WeightFormats formats{format, head ? format : WeightFormat{}};
      const PackedFolder folder(c.model, formats);
      for (const Dtype dtype : {Dtype::bf16, Dtype::f16, Dtype::f32}) {
        EngineOptions o = options_of(c.model, dtype);
        o.formats = formats;
        const auto want = all_logits(o, adapters);
        o.formats = {};
        o.model = folder.path();
        o.map_weights = dtype == Dtype::bf16 && head;
        const auto got = all_logits(o, adapters);
        ASSERT_EQ(got.size(), want.size());
        for (size_t i = 0; i < got.size(); ++i) {
          EXPECT_TRUE(same_bits(got[i], want[i]))
              << to_string(format) << (head ? " with head, " : ", ") << to_string(dtype) << ", "
              << (i == 0 ? "no adapter" : c.adapters[i - 1]);
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Cases, Packed,
    testing::Values(PackedCase{"mixtral-base",
                               {"all-linear-rslora-r16", "dora-qv-r8", "experts-r8", "save-lm-head",
                                "mixtral-dora/adapters/dora-all-rslora-r2"}},
                    PackedCase{"mixtral-tied", {}},
                    PackedCase{"mixtral-v5-target-parameters", {"fused-r8"}},
                    PackedCase{"dbrx-base", {"everything-r8", "dora-wqkv-r8"}}),
    [](const auto& p) { return test_name(p.param.model); });

const WeightFormats kInt8{{Kind::int8, 0, false}, {}};

EngineOptions packed_options(const PackedFolder& folder) {
  EngineOptions o = options_of("mixtral-base", Dtype::bf16);
  o.model = folder.path();
  return o;
}

TEST(PackedModel, has_the_digest_of_its_source_until_its_config_is_changed) {
  const PackedFolder folder("mixtral-base", kInt8);
  const std::string original = open_model(golden("mixtral-base/model")).digest;
  EXPECT_EQ(open_model(folder.path()).digest, original);
  folder.replace_in_config("\"rope_theta\": ", "\"rope_theta\": 1");
  EXPECT_NE(open_model(folder.path()).digest, original);
}

TEST(PackedModel, is_the_format_that_is_asked_for_or_is_refused) {
  const PackedFolder folder("mixtral-base", kInt8);
  EngineOptions o = packed_options(folder);
  o.formats = kInt8;
  EXPECT_EQ(refusal(o), "it was loaded");
  o.formats.linears = {Kind::int4, 128, false};
  EXPECT_THAT(refusal(o), HasSubstr("is packed as int8, its head as plain: leave --quantize out"));
  o.formats = kInt8;
  o.formats.head = kInt8.linears;
  EXPECT_THAT(refusal(o), HasSubstr("leave --quantize out"));
}

TEST(PackedModel, no_adapter_is_merged_into_it) {
  const PackedFolder folder("mixtral-base", kInt8);
  EngineOptions o = packed_options(folder);
  o.folded_adapter = golden("mixtral-base/adapters/attn-r8");
  EXPECT_THAT(refusal(o), HasSubstr("much of an adapter would be rounded away"));
}

TEST(PackedModel, that_does_not_fit_its_config_is_refused) {
  const PackedFolder fewer("mixtral-base", kInt8);
  fewer.replace_in_config("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1");
  EXPECT_THAT(refusal(packed_options(fewer)), HasSubstr("belongs to nothing in a mixtral model"));
  const PackedFolder more("mixtral-base", kInt8);
  more.replace_in_config("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3");
  EXPECT_THAT(refusal(packed_options(more)), HasSubstr("piece \"layers.2."));
  const PackedFolder wider("mixtral-base", kInt8);
  wider.replace_in_config("\"intermediate_size\": ", "\"intermediate_size\": 1");
  EXPECT_THAT(refusal(packed_options(wider)), HasSubstr("gate_up\" is int8 of shape ["));
  const PackedFolder words("mixtral-base", kInt8);
  words.replace_in_config("\"vocab_size\": ", "\"vocab_size\": 1");
  EXPECT_THAT(refusal(packed_options(words)), HasSubstr("piece \"embed\" is plain of shape ["));
}

TEST(PackedModel, is_packed_only_from_tensors_that_are_all_understood) {
  const std::string from = golden("mixtral-base/model");
  const PackedFolder folder("mixtral-base", kInt8);
  fs::remove(join_path(folder.path(), std::string(kPackedName)));
  fs::copy_file(from + "/model.safetensors", folder.path() + "/model.safetensors");
  folder.replace_in_config("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1");
  const ModelFiles files = open_model(folder.path());
  const Architecture& architecture = architecture_of("mixtral");
  Spec spec = architecture.spec(files.config);
  spec.formats = kInt8;
  ThreadPool pool(1);
  const auto ops = make_cpu_ops(Dtype::bf16, pool);
  EXPECT_THROW(write_packed(folder.path() + "/new", architecture, spec, files, *ops), Error);
}

}  // namespace
}  // namespace lorry::test
