// LoRAX's faults with adapters, each named by its row in the table of them: what went wrong there
// is right here.
#include <algorithm>

#include <gtest/gtest.h>

#include "adapters/support.h"

namespace lorry {
namespace {

using test::Draft;

constexpr int64_t kHidden = 8, kWidth = 6, kVocab = 10, kExperts = 4;

std::string config(const std::string& fields) {
  return R"({"peft_type": "LORA", "peft_version": "0.21.2", "r": 2, "lora_alpha": 4)" +
         (fields.empty() ? std::string() : ", " + fields) + "}";
}

class LoraxFaults : public testing::Test {
 protected:
  LoraxFaults()
      : mixtral_(test::mixtral_sites({3, kExperts, kHidden, 8, 4, kWidth, kVocab})),
        dbrx_(test::dbrx_sites({3, kExperts, kHidden, 8, 4, kWidth, kVocab})) {}

  std::unique_ptr<Adapter> load(Draft draft, const SiteTable& table) {
    const BaseRows zero = [](Tensor y, const Site&, int64_t) {
      std::fill_n(y.row<float>(0), y.shape.size(), 0.0F);
    };
    return load_adapter(draft.write(temp_.path() + "/a"), {&table, &ops_, zero});
  }
  void refused(Code code, const std::vector<std::string>& parts, const Draft& draft,
               const SiteTable& table) {
    test::expect_error(code, parts, [&] { load(draft, table); });
  }

  // The pair at `site` is scale * B A of the module in the draft.
  void expect_pair(const Adapter& adapter, const SiteTable& table, const Site& site,
                   const Draft& draft, const std::string& module, double scale) {
    const auto& a = draft.tensors.at("base_model.model." + module + ".lora_A.weight");
    const auto& b = draft.tensors.at("base_model.model." + module + ".lora_B.weight");
    const int64_t rank = a.first[0];
    const int64_t in = a.first[1];
    const int64_t out = b.first[0];
    const SitePatch& p = adapter.view().patches[static_cast<size_t>(table.index(site))];
    ASSERT_EQ(p.rank, rank) << module;
    const std::vector<double> delta = test::delta_of(p, in, out);
    for (int64_t o = 0; o < out; ++o) {
      for (int64_t i = 0; i < in; ++i) {
        double want = 0;
        for (int64_t k = 0; k < rank; ++k) {
          want += double{b.second[static_cast<size_t>(o * rank + k)]} *
                  double{a.second[static_cast<size_t>(k * in + i)]};
        }
        want *= scale;
        ASSERT_NEAR(delta[static_cast<size_t>(o * in + i)], want, 1e-6 * (1 + std::abs(want)))
            << module;
      }
    }
  }

  test::TempFolder temp_;
  test::PackOps ops_;
  SiteTable mixtral_, dbrx_;
};

TEST_F(LoraxFaults, lorax_fault_1_part_of_the_layers_and_experts_is_applied_and_nothing_dropped) {
  Draft d;
  const std::vector<std::pair<Site, std::string>> places = {
      {{SiteKind::q, 0}, "model.layers.0.self_attn.q_proj"},
      {{SiteKind::q, 2}, "model.layers.2.self_attn.q_proj"},
      {{SiteKind::o, 1}, "model.layers.1.self_attn.o_proj"},
      {{SiteKind::router, 2}, "model.layers.2.block_sparse_moe.gate"},
      {{SiteKind::gate, 1, 3}, "model.layers.1.block_sparse_moe.experts.3.w1"},
      {{SiteKind::down, 1, 0}, "model.layers.1.block_sparse_moe.experts.0.w2"}};
  for (const auto& [site, module] : places) {
    const auto info = std::find_if(mixtral_.sites.begin(), mixtral_.sites.end(),
                                   [&](const SiteInfo& s) { return s.module == module; });
    d.pair(module, 2, info->in, info->out);
  }
  const auto adapter = load(d, mixtral_);
  ASSERT_EQ(adapter->sites().size(), places.size());
  for (const auto& [site, module] : places) {
    expect_pair(*adapter, mixtral_, site, d, module, 2.0);
  }
  for (const char* stray :
       {"model.layers.3.self_attn.q_proj", "model.layers.0.block_sparse_moe.experts.4.w1",
        "model.layers.0.self_attn.rotary_emb", "transformer.blocks.0.ffn.router.layer"}) {
    Draft more = d;
    refused(Code::bad_file, {stray, "no linear"}, more.pair(stray, 2, kHidden, 8), mixtral_);
  }
}

TEST_F(LoraxFaults, lorax_fault_2_every_option_is_applied_or_refused_by_name) {
  Draft d;
  d.config = config(
      R"("use_rslora": true, "rank_pattern": {"k_proj": 3}, "alpha_pattern": {"v_proj": 9},
         "modules_to_save": ["norm"], "target_parameters": ["mlp.experts.down_proj"])");
  d.pair("model.layers.0.self_attn.k_proj", 3, kHidden, 4);
  d.pair("model.layers.0.self_attn.v_proj", 2, kHidden, 4);
  d.pair("model.layers.1.mlp.experts", 2 * kExperts, kWidth, kHidden);
  d.add("model.norm.weight", {kHidden});
  d.add("model.embed_tokens.lora_embedding_A", {2, kVocab});
  d.add("model.embed_tokens.lora_embedding_B", {kHidden, 2});
  const auto adapter = load(d, mixtral_);
  EXPECT_EQ(adapter->sites().size(), static_cast<size_t>(2 + kExperts + 2));
  expect_pair(*adapter, mixtral_, {SiteKind::k, 0}, d, "model.layers.0.self_attn.k_proj",
              4 / std::sqrt(3.0));
  expect_pair(*adapter, mixtral_, {SiteKind::v, 0}, d, "model.layers.0.self_attn.v_proj",
              9 / std::sqrt(2.0));
  const std::vector<std::pair<std::string, std::string>> refusals = {
      {"bias", R"("lora_only")"},    {"lora_bias", "true"},
      {"fan_in_fan_out", "true"},    {"layer_replication", "[[0,2]]"},
      {"use_bdlora", R"({"a":1})"},  {"arrow_config", R"({"a":1})"},
      {"kasa_config", R"({"a":1})"}, {"velora_config", R"({"a":1})"},
      {"use_qalora", "true"},        {"monteclora_config", R"({"a":1})"}};
  for (const auto& [field, value] : refusals) {
    Draft one;
    one.config = config(fmt::format("\"{}\": {}", field, value));
    one.pair("model.layers.0.self_attn.v_proj", 2, kHidden, 4);
    refused(Code::unsupported, {field, value}, one, mixtral_);
  }
}

TEST_F(LoraxFaults, lorax_fault_3_the_scale_is_the_same_for_every_rank) {
  std::vector<int32_t> ranks = {64, 100, 128, 255, 256, 511, 512};
  for (int32_t rank = 1; rank <= 48; ++rank) ranks.push_back(rank);
  for (const int32_t rank : ranks) {
    Draft d;
    d.config = fmt::format(R"({{"peft_type": "LORA", "r": {}, "lora_alpha": 5}})", rank);
    d.pair("lm_head", rank, kHidden, kVocab);
    const auto adapter = load(d, dbrx_);
    expect_pair(*adapter, dbrx_, {SiteKind::lm_head}, d, "lm_head", 5.0 / rank);
  }
}

TEST_F(LoraxFaults, lorax_fault_4_every_shape_is_compared_with_the_base) {
  const std::string q = "model.layers.0.self_attn.q_proj";
  const std::string embed = "model.embed_tokens";
  struct Wrong {
    std::string tensor;
    Shape shape;
    std::string expected;
  };
  const std::vector<Wrong> cases = {
      {q + ".lora_A.weight", {2, 9}, "[2, 8]"},
      {q + ".lora_B.weight", {9, 2}, "[8, 2]"},
      {q + ".lora_B.weight", {2, 8}, "[8, 2]"},
      {q + ".lora_A.weight", {2, 8, 1}, "[2, 8]"},
      {q + ".lora_magnitude_vector", {1, 8}, "[8]"},
      {q + ".weight", {8, 9}, "[8, 8]"},
      {q + ".base_layer.weight", {64}, "[8, 8]"},
      {"model.norm.weight", {9}, "[8]"},
      {embed + ".weight", {9, 8}, "[10, 8]"},
      {embed + ".lora_embedding_A", {2, 9}, "[2, 10]"},
      {embed + ".lora_embedding_B", {2, 8}, "[8, 2]"},
      {"lm_head.weight", {11, 8}, "[10, 8]"},
      {"model.layers.0.mlp.experts.down_proj", {kExperts, kHidden, kWidth + 1}, "[4, 8, 6]"},
      {"model.layers.0.mlp.experts.gate_up_proj", {kExperts, kWidth, kHidden}, "[4, 12, 8]"},
  };
  for (const Wrong& w : cases) {
    Draft d;
    d.config = config(R"("use_dora": true)");
    d.pair(q, 2, kHidden, 8).add(q + ".lora_magnitude_vector", {8});
    d.add(embed + ".lora_embedding_A", {2, kVocab}).add(embed + ".lora_embedding_B", {kHidden, 2});
    d.add(embed + ".lora_magnitude_vector", {kHidden});
    refused(Code::bad_file,
            {w.tensor, "expected shape " + w.expected, "found " + to_string(w.shape)},
            d.add(w.tensor, w.shape), mixtral_);
  }
}

TEST_F(LoraxFaults, lorax_fault_5_shapes_and_sites_decide_whether_an_adapter_is_for_this_model) {
  Draft d;
  d.config = config(R"("base_model_name_or_path": "somebody/another-model")");
  d.pair("model.layers.0.self_attn.q_proj", 2, kHidden, 8);
  EXPECT_EQ(load(d, mixtral_)->base_model(), "somebody/another-model");
  refused(Code::bad_file, {"model.layers.0.self_attn.q_proj", "no linear"}, d, dbrx_);
  const SiteTable larger = test::mixtral_sites({3, kExperts, 16, 16, 8, kWidth, kVocab});
  refused(Code::bad_file, {"expected shape [2, 16]", "found [2, 8]"}, d, larger);
}

TEST_F(LoraxFaults, lorax_fault_11_the_output_layer_and_the_embedding_are_adapted) {
  for (const bool is_dbrx : {false, true}) {
    const SiteTable& table = is_dbrx ? dbrx_ : mixtral_;
    const std::string embed = is_dbrx ? "transformer.wte" : "model.embed_tokens";
    Draft d;
    d.pair("lm_head", 2, kHidden, kVocab);
    d.add(embed + ".lora_embedding_A", {2, kVocab}).add(embed + ".lora_embedding_B", {kHidden, 2});
    const auto adapter = load(d, table);
    EXPECT_EQ(adapter->sites().size(), 2U);
    expect_pair(*adapter, table, {SiteKind::lm_head}, d, "lm_head", 2.0);
    EXPECT_EQ(adapter->view().patches[static_cast<size_t>(table.index({SiteKind::embed}))].rank, 2);
    Draft saved;
    saved.config = config(fmt::format(R"("modules_to_save": ["lm_head", "{}"])", embed));
    saved.add("lm_head.weight", {kVocab, kHidden}).add(embed + ".weight", {kVocab, kHidden});
    const auto whole = load(saved, table);
    for (const AppliedSite& s : whole->sites()) EXPECT_TRUE(s.replaced) << s.module;
  }
}

}  // namespace
}  // namespace lorry
