// Models whose weights are quantised, on several ranks: packed ones have the bits of quantising the
// original, with every adapter, and either has the weights of one rank.
#include <tuple>

#include "adapters/adapter.h"
#include "engine/one_sequence.h"
#include "engine/packed_folder.h"
#include "engine/ranks.h"

namespace lorry::test {
namespace {

using Kind = WeightFormat::Kind;

const std::vector<int32_t> kTokens{1, 5, 9, 12, 33, 7, 40, 2, 61, 17};

// Of rank 0: logits without an adapter, and with each.
std::vector<std::vector<float>> logits_on(int ranks, EngineOptions o,
                                          const std::vector<std::string>& adapters) {
  std::vector<std::vector<float>> all;
  on_ranks(ranks, [&](const std::shared_ptr<Comm>& comm) {
    EngineOptions own = o;
    own.threads = 1;
    own.comm = comm;
    Log log({.level = LogLevel::error});
    const auto model = load_model(own, log);
    EXPECT_EQ(model->memory.weights, model->lm->weights().bytes);
    const auto run = [&](const std::vector<AdapterView>& views) {
      const Tensor logits = logits_of(*model, kTokens, views);
      if (comm->rank() == 0) all.push_back(copy_of(logits));
    };
    run({});
    for (const std::string& folder : adapters) {
      const auto adapter = load_adapter(folder, adapter_target(*model), {});
      run({adapter->view()});
    }
  });
  return all;
}

float largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  float largest = 0;
  for (size_t i = 0; i < a.size(); ++i) largest = std::max(largest, std::abs(a[i] - b[i]));
  return largest;
}

struct ModelCase {
  std::string model;
  std::vector<std::string> adapters;
};

class QuantisedModelOnRanks
    : public testing::TestWithParam<std::tuple<ModelCase, WeightFormat, int>> {};

TEST_P(QuantisedModelOnRanks, packed_or_not_it_has_the_same_bits_and_the_weights_of_one_rank) {
  const auto& [c, format, ranks] = GetParam();
  std::vector<std::string> adapters;
  for (const std::string& a : c.adapters) adapters.push_back(golden(a));
  const WeightFormats formats{format, format};
  const PackedFolder folder(c.model, formats);
  EngineOptions original = golden_options(c.model, {});
  original.formats = formats;
  EngineOptions packed = golden_options(c.model, {});
  packed.model = folder.path();
  const auto alone = logits_on(1, packed, adapters);
  for (const bool whole_experts : {false, true}) {
    original.expert_parallel = packed.expert_parallel = whole_experts;
    packed.map_weights = whole_experts;
    const auto want = logits_on(ranks, original, adapters);
    const auto got = logits_on(ranks, packed, adapters);
    ASSERT_EQ(got.size(), want.size());
    ASSERT_EQ(got.size(), adapters.size() + 1);
    for (size_t i = 0; i < got.size(); ++i) {
      const std::string which = i == 0 ? "no adapter" : adapters[i - 1];
      EXPECT_TRUE(same_bits(got[i], want[i])) << which;
      EXPECT_LE(largest_difference(got[i], alone[i]), 2e-4) << which;
    }
    original.dtype = packed.dtype = Dtype::bf16;
    EXPECT_TRUE(same_bits(logits_on(ranks, packed, {})[0], logits_on(ranks, original, {})[0]));
    original.dtype = packed.dtype = Dtype::f32;
  }
}

const ModelCase kMixtral{
    "mixtral-base",
    {"mixtral-base/adapters/all-linear-rslora-r16", "mixtral-base/adapters/dora-qv-r8",
     "mixtral-base/adapters/save-lm-head", "mixtral-dora/adapters/dora-all-rslora-r2"}};
const ModelCase kTied{"mixtral-tied", {}};
const ModelCase kFused{"dbrx-base",
                       {"dbrx-base/adapters/everything-r8", "dbrx-base/adapters/dora-wqkv-r8",
                        "dbrx-saved/adapters/dora-out-proj-router-r3"}};

// Heads of 16, experts 80 and 40 wide: some cuts are at scales, some are not.
INSTANTIATE_TEST_SUITE_P(Cases, QuantisedModelOnRanks,
                         testing::Combine(testing::Values(kMixtral, kTied, kFused),
                                          testing::Values(WeightFormat{Kind::int8, 0, false},
                                                          WeightFormat{Kind::int4, 32, false},
                                                          WeightFormat{Kind::fp8, 0, false}),
                                          testing::Values(2, 3)),
                         [](const auto& p) {
                           const WeightFormat& f = std::get<1>(p.param);
                           const char* kind = f.kind == Kind::int8   ? "int8"
                                              : f.kind == Kind::int4 ? "int4"
                                                                     : "fp8";
                           return test_name(std::get<0>(p.param).model) + "_" + kind + "_on_" +
                                  std::to_string(std::get<2>(p.param));
                         });

}  // namespace
}  // namespace lorry::test
