// config.json to Spec: defaults, both generations, and every refusal with key, value and range.
#include <cmath>
#include <set>

#include <boost/json/serialize.hpp>
#include <gtest/gtest.h>

#include "base/error.h"
#include "base/json.h"
#include "models/architecture.h"
#include "models/synthetic.h"

namespace lorry {
namespace {

json::object mixtral() {
  return {{"model_type", "mixtral"},        {"vocab_size", 100},      {"hidden_size", 64},
          {"intermediate_size", 96},        {"num_hidden_layers", 2}, {"num_attention_heads", 4},
          {"num_key_value_heads", 2},       {"num_local_experts", 4}, {"num_experts_per_tok", 2},
          {"max_position_embeddings", 256}, {"rope_theta", 1000.0}};
}

json::object dbrx() {
  return {{"model_type", "dbrx"},
          {"d_model", 64},
          {"n_heads", 4},
          {"n_layers", 2},
          {"vocab_size", 100},
          {"max_seq_len", 128},
          {"attn_config", {{"clip_qkv", 8.0}, {"kv_n_heads", 2}, {"rope_theta", 500000.0}}},
          {"ffn_config", {{"ffn_hidden_size", 96}, {"moe_num_experts", 4}, {"moe_top_k", 2}}}};
}

Spec spec_of(const json::object& config) {
  const Config c = Config::parse(json::serialize(config), "config.json");
  return architecture_of(c.text("model_type")).spec(c);
}

std::string refusal(const json::object& config) {
  try {
    spec_of(config);
  } catch (const Error& e) {
    return e.what();
  }
  return "was taken";
}

void expect_names(const std::string& message, std::initializer_list<const char*> words) {
  for (const char* word : words) {
    EXPECT_NE(message.find(word), std::string::npos) << "no \"" << word << "\" in: " << message;
  }
}

TEST(Spec, mixtral) {
  const Spec s = spec_of(mixtral());
  EXPECT_EQ(s.attention.head_dim, 16);
  EXPECT_EQ(s.attention.window, 0);
  EXPECT_EQ(s.qkv_dim(), 128);
  EXPECT_EQ(s.rope.theta, 1000.0);
  EXPECT_EQ(s.routing.norm_p, 1.0F);
  EXPECT_TRUE(std::isinf(s.qkv_clip));
  EXPECT_FALSE(s.fused_qkv);
}

TEST(Spec, mixtral_of_transformers_5_has_rope_parameters) {
  json::object c = mixtral();
  c.erase("rope_theta");
  c["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 77.0}};
  EXPECT_EQ(spec_of(c).rope.theta, 77.0);
}

TEST(Spec, mixtral_head_dim_may_differ_from_hidden_over_heads) {
  json::object c = mixtral();
  c["head_dim"] = 32;
  EXPECT_EQ(spec_of(c).q_dim(), 128);
  c["head_dim"] = nullptr;
  EXPECT_EQ(spec_of(c).q_dim(), 64);
}

TEST(Spec, dbrx) {
  const Spec s = spec_of(dbrx());
  EXPECT_EQ(s.qkv_clip, 8.0F);
  EXPECT_EQ(s.rope.theta, 500000.0);
  EXPECT_EQ(s.routing.norm_p, 1.0F);
  EXPECT_TRUE(s.norm_centered);
  EXPECT_TRUE(s.fused_qkv);
}

TEST(Spec, dbrx_nulls_mean_no_clamp_and_no_normalisation) {
  json::object c = dbrx();
  c["attn_config"].as_object()["clip_qkv"] = nullptr;
  c["ffn_config"].as_object()["moe_normalize_expert_weights"] = nullptr;
  const Spec s = spec_of(c);
  EXPECT_TRUE(std::isinf(s.qkv_clip));
  EXPECT_EQ(s.routing.norm_p, 0.0F);
}

TEST(Spec, dbrx_attn_config_theta_wins_over_rope_parameters) {
  json::object c = dbrx();
  c["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 10000.0}};
  EXPECT_EQ(spec_of(c).rope.theta, 500000.0);
}

TEST(Spec, E13_unknown_model_type_lists_the_known) {
  expect_names(refusal({{"model_type", "gpt2"}}), {"gpt2", "mixtral", "dbrx"});
}

TEST(Spec, E13_zero_negative_and_huge_sizes) {
  for (const char* key : {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
                          "num_attention_heads", "num_key_value_heads", "num_local_experts",
                          "num_experts_per_tok", "max_position_embeddings"}) {
    for (const int64_t value : {int64_t{0}, int64_t{-1}, int64_t{1'000'000'000'000}}) {
      json::object c = mixtral();
      c[key] = value;
      expect_names(refusal(c), {"config.json", key, std::to_string(value).c_str()});
    }
  }
}

TEST(Spec, E13_more_experts_per_token_than_experts) {
  json::object c = mixtral();
  c["num_experts_per_tok"] = 5;
  expect_names(refusal(c), {"5", "4", "experts"});
}

TEST(Spec, E13_heads_that_do_not_divide) {
  json::object c = mixtral();
  c["num_key_value_heads"] = 3;
  expect_names(refusal(c), {"4", "3", "heads"});
  c = mixtral();
  c["num_attention_heads"] = 6;
  expect_names(refusal(c), {"hidden_size 64", "6"});
  c["head_dim"] = 15;
  expect_names(refusal(c), {"head_dim 15"});
}

TEST(Spec, E13_activations_and_assignments_that_are_not_known) {
  json::object c = mixtral();
  c["hidden_act"] = "relu";
  expect_names(refusal(c), {"hidden_act", "relu", "silu"});
  c = dbrx();
  c["ffn_config"].as_object()["uniform_expert_assignment"] = true;
  expect_names(refusal(c), {"uniform_expert_assignment"});
  c = dbrx();
  c["tie_word_embeddings"] = true;
  expect_names(refusal(c), {"tie_word_embeddings"});
}

TEST(Spec, synthetic_models_are_read_like_any_other) {
  const Config c = Config::parse(synthetic_config("synthetic:mini-mixtral"), "synthetic");
  const Spec s = architecture_of(c.text("model_type")).spec(c);
  EXPECT_EQ(s.dim, 2048);
  EXPECT_EQ(s.experts, 8);
  const auto read = [](const char* model) {
    const Config shape = Config::parse(synthetic_config(model), "synthetic");
    return architecture_of(shape.text("model_type")).spec(shape);
  };
  EXPECT_EQ(read("synthetic:mixtral-8x7b").layers, 32);
  EXPECT_EQ(read("synthetic:mixtral-8x7b:3").layers, 3);
  EXPECT_EQ(read("synthetic:dbrx").layers, 40);
  EXPECT_EQ(read("synthetic:dbrx:2").experts, 16);
  for (const char* wrong :
       {"synthetic:nothing", "synthetic:mini-mixtral:2", "synthetic:dbrx:", "synthetic:dbrx:0",
        "synthetic:dbrx:-1", "synthetic:dbrx:2x", "synthetic:mixtral-8x7b:99999999999"}) {
    EXPECT_THROW(synthetic_config(wrong), Error) << wrong;
  }
}

TEST(Sites, numbering_is_dense_and_unique) {
  for (const json::object& config : {mixtral(), dbrx()}) {
    const Config c = Config::parse(json::serialize(config), "config.json");
    const Architecture& a = architecture_of(c.text("model_type"));
    const SiteTable table = a.sites(a.spec(c));
    std::set<int32_t> seen;
    for (const SiteInfo& s : table.sites) {
      const int32_t i = table.index(s.site);
      EXPECT_TRUE(seen.insert(i).second) << s.module;
      EXPECT_GE(i, 0);
      EXPECT_LT(i, table.index.size());
    }
  }
}

}  // namespace
}  // namespace lorry
