// The base matrix of every site: the same rows from the packed weights as from the checkpoint.
#include "models/base_rows.h"

#include <gtest/gtest.h>

#include "models/loader.h"
#include "ops/checked_ops.h"
#include "ops/cpu/cpu_ops.h"

namespace lorry {
namespace {

// Sizes that are no multiples of a panel.
constexpr const char* kMixtral = R"({
  "model_type": "mixtral", "vocab_size": 130, "hidden_size": 72, "intermediate_size": 100,
  "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 12,
  "num_local_experts": 3, "num_experts_per_tok": 2, "max_position_embeddings": 256,
  "tie_word_embeddings": TIED})";
constexpr const char* kDbrx = R"({
  "model_type": "dbrx", "d_model": 72, "n_heads": 6, "n_layers": 2, "vocab_size": 130,
  "max_seq_len": 128, "attn_config": {"kv_n_heads": 2},
  "ffn_config": {"ffn_hidden_size": 100, "moe_num_experts": 3, "moe_top_k": 2}})";

std::string mixtral(const char* tied) {
  std::string text = kMixtral;
  return text.replace(text.find("TIED"), 4, tied);
}

// Every site with the shape of its stored matrix.
std::vector<SiteInfo> all_sites(const SiteTable& table, const Spec& spec) {
  std::vector<SiteInfo> sites = table.sites;
  if (spec.fused_qkv) {  // DBRX names its experts only together
    for (int32_t e = 0; e < spec.experts; ++e) {
      for (const SiteKind kind : {SiteKind::gate, SiteKind::up}) {
        sites.push_back({"experts", {kind, 1, e}, spec.dim, spec.ffn});
      }
      sites.push_back({"experts", {SiteKind::down, 1, e}, spec.ffn, spec.dim});
    }
  }
  for (SiteInfo& s : sites) {
    if (s.site.kind == SiteKind::embed) std::swap(s.in, s.out);
    if (is_norm(s.site.kind)) std::swap(s.in, s.out);
  }
  return sites;
}

class BaseRows : public testing::TestWithParam<std::tuple<std::string, Dtype, WeightFormat>> {};

TEST_P(BaseRows, packed_weights_and_checkpoint_agree_on_every_site) {
  const auto& [text, act, format] = GetParam();
  const Config config = Config::parse(text, "config.json");
  const Architecture& architecture = architecture_of(config.text("model_type"));
  Spec spec = architecture.spec(config);
  spec.formats = {format, format};
  const SiteTable table = architecture.sites(spec);
  ThreadPool pool(2);
  const auto ops = make_checked_ops(make_cpu_ops(act, pool));
  const auto source = random_source();
  const ModelWeights weights = load_weights(architecture, spec, *source, *ops);
  std::set<int32_t> indices;
  for (const SiteInfo& s : all_sites(table, spec)) {
    indices.insert(table.index(s.site));
    std::vector<float> packed(static_cast<size_t>(s.in * s.out), -1);
    std::vector<float> stored(packed.size(), -2);
    const StoredModel model{architecture, spec, *source, *ops};
    // In pieces that end nowhere in particular.
    for (int64_t first = 0; first < s.out; first += 47) {
      const Shape shape{std::min<int64_t>(47, s.out - first), s.in};
      base_rows(view(packed.data() + first * s.in, Dtype::f32, shape), weights, table.index, *ops,
                s.site, first);
      stored_rows(view(stored.data() + first * s.in, Dtype::f32, shape), model, s.site, first);
    }
    EXPECT_TRUE(packed == stored) << s.module;
  }
  EXPECT_GE(indices.size(), 20U);
  EXPECT_LT(*indices.rbegin(), table.index.size());
}

INSTANTIATE_TEST_SUITE_P(
    Models, BaseRows,
    testing::Combine(testing::Values(mixtral("false"), mixtral("true"), kDbrx),
                     testing::Values(Dtype::bf16, Dtype::f32),
                     testing::Values(WeightFormat{}, WeightFormat{WeightFormat::Kind::int8},
                                     WeightFormat{WeightFormat::Kind::int4, 32})));

}  // namespace
}  // namespace lorry
