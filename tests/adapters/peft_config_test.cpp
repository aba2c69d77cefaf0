#include "adapters/peft_config.h"

#include <gtest/gtest.h>

#include "adapters/support.h"

namespace lorry {
namespace {

PeftConfig parse(const std::string& fields) {
  const std::string text = R"({"peft_type": "LORA", "r": 8, "lora_alpha": 16)" +
                           (fields.empty() ? std::string() : ", " + fields) + "}";
  return PeftConfig::parse(parse_json(text, "config"), "config", 512);
}

void expect_refused(Code code, const std::vector<std::string>& parts, const std::string& fields) {
  test::expect_error(code, parts, [&] { parse(fields); });
}

void expect_bad(const std::string& text, Code code, const std::vector<std::string>& parts) {
  test::expect_error(code, parts,
                     [&] { PeftConfig::parse(parse_json(text, "config"), "config", 512); });
}

TEST(PeftConfig, ScaleIsAlphaOverRank) {
  const PeftConfig c = parse("");
  EXPECT_EQ(c.rank_of("model.layers.0.self_attn.q_proj"), 8);
  EXPECT_EQ(c.scale_of("model.layers.0.self_attn.q_proj", 8), 2.0F);
  EXPECT_EQ(parse(R"("use_rslora": true)").scale_of("x", 16), 4.0F);
}

TEST(PeftConfig, FirstMatchingPatternInFileOrderWins) {
  const PeftConfig c = parse(
      R"("rank_pattern": {"layers.0.*": 4, "q_proj": 12, "(k|v)_proj": 3},
         "alpha_pattern": {"v_proj": 6, ".*_proj": 1.5})");
  EXPECT_EQ(c.rank_of("model.layers.0.self_attn.q_proj"), 4);
  EXPECT_EQ(c.rank_of("model.layers.1.self_attn.q_proj"), 12);
  EXPECT_EQ(c.rank_of("model.layers.1.self_attn.v_proj"), 3);
  EXPECT_EQ(c.rank_of("model.layers.1.self_attn.o_proj"), 8);
  EXPECT_EQ(c.scale_of("model.layers.1.self_attn.v_proj", 3), 2.0F);
  EXPECT_EQ(c.scale_of("model.layers.1.self_attn.o_proj", 3), 0.5F);
  EXPECT_EQ(c.scale_of("lm_head", 8), 2.0F);
}

TEST(PeftConfig, PatternMatchesAWholeDottedSuffix) {
  const PeftConfig c = parse(R"("rank_pattern": {"proj": 4, "head": 5})");
  EXPECT_EQ(c.rank_of("model.q_proj"), 8) << "no dot before proj";
  EXPECT_EQ(c.rank_of("model.proj"), 4);
  EXPECT_EQ(c.rank_of("head"), 5);
  EXPECT_EQ(c.rank_of("head.x"), 8);
}

TEST(PeftConfig, TargetParametersMatchBySuffix) {
  const PeftConfig c = parse(R"("target_parameters": ["down_proj", "mlp.gate.weight"])");
  EXPECT_TRUE(c.targets("model.layers.0.mlp.experts", "down_proj"));
  EXPECT_TRUE(c.targets("model.layers.0.mlp.gate", "weight"));
  EXPECT_FALSE(c.targets("model.layers.0.mlp.experts", "gate_up_proj"));
  EXPECT_FALSE(c.targets("model.layers.0.mlp.experts", "xdown_proj"));
}

TEST(PeftConfig, InvocationTokensAreAListOfIds) {
  EXPECT_EQ(parse(R"("alora_invocation_tokens": [5, 0, 319])").invocation_tokens(),
            (std::vector<int32_t>{5, 0, 319}));
  for (const char* none : {"null", "[]"}) {
    EXPECT_TRUE(
        parse(fmt::format("\"alora_invocation_tokens\": {}", none)).invocation_tokens().empty());
  }
  for (const char* bad : {"[-1]", "[1.5]", "[\"a\"]", "[true]", "[1e10]", "3", "\"a\"", "{}"}) {
    expect_refused(Code::bad_file, {"alora_invocation_tokens", "token id"},
                   fmt::format("\"alora_invocation_tokens\": {}", bad));
  }
  std::string many = "0";
  for (size_t i = 0; i < kMaxInvocationTokens; ++i) many += ",1";
  expect_refused(Code::unsupported, {"alora_invocation_tokens has 65", "at most 64"},
                 "\"alora_invocation_tokens\": [" + many + "]");
}

TEST(PeftConfig, VersionDecidesTheOldStacking) {
  EXPECT_TRUE(parse("").old_stacking());
  EXPECT_TRUE(parse(R"("peft_version": "0.18.1")").old_stacking());
  EXPECT_FALSE(parse(R"("peft_version": "0.19.0.dev0@abc")").old_stacking());
  EXPECT_FALSE(parse(R"("peft_version": "1.0")").old_stacking());
  expect_refused(Code::bad_file, {"peft_version", "new"}, R"("peft_version": "new")");
}

TEST(PeftConfig, F2_peft_type_other_than_lora) {
  expect_bad(R"({"peft_type": "LOHA"})", Code::unsupported, {"peft_type", "LOHA", "LORA"});
  expect_bad(R"({"r": 8})", Code::unsupported, {"peft_type", "null"});
  expect_bad(R"([1])", Code::bad_file, {"object"});
  expect_bad(R"({"medusa_num_heads": 3})", Code::unsupported, {"medusa"});
}

TEST(PeftConfig, F3_rank_out_of_range) {
  for (const char* r : {"0", "-1", "513", "1e9", "2.5", "\"8\"", "null", "true"}) {
    expect_bad(fmt::format(R"({{"peft_type": "LORA", "r": {}, "lora_alpha": 1}})", r),
               Code::bad_file, {"config: r is", "1 to 512"});
  }
  expect_refused(Code::bad_file, {"rank_pattern[\"q\"] is 600", "512"},
                 R"("rank_pattern": {"q": 600})");
}

TEST(PeftConfig, F3_alpha_not_finite) {
  for (const char* alpha : {"\"16\"", "null", "1e300", "-1e31"}) {
    expect_bad(fmt::format(R"({{"peft_type": "LORA", "r": 8, "lora_alpha": {}}})", alpha),
               Code::bad_file, {"lora_alpha is", "finite"});
  }
  for (const char* alpha : {"NaN", "Infinity"}) {  // Python writes these; JSON has none
    EXPECT_THROW(parse_json(fmt::format(R"({{"lora_alpha": {}}})", alpha), "config"), Error);
  }
  expect_refused(Code::bad_file, {"alpha_pattern[\"q\"] is true"},
                 R"("alpha_pattern": {"q": true})");
}

TEST(PeftConfig, F3_unsupported_options_are_named_with_their_value) {
  const std::vector<std::pair<std::string, std::string>> set = {
      {"bias", R"("all")"},
      {"lora_bias", "true"},
      {"fan_in_fan_out", "true"},
      {"layer_replication", "[[0,4]]"},
      {"use_bdlora", "true"},
      {"use_qalora", "true"},
      {"arrow_config", R"({"top_k":3})"},
      {"kasa_config", R"({"a":3})"},
      {"velora_config", R"({"a":3})"},
      {"monteclora_config", R"({"a":3})"},
      {"init_lora_weights", R"("pissa_niter_4")"},
      {"init_lora_weights", R"("olora")"},
      {"an_option_of_2031", "1"},
  };
  for (const auto& [name, value] : set) {
    expect_refused(Code::unsupported, {name, value}, fmt::format("\"{}\": {}", name, value));
  }
}

TEST(PeftConfig, UnsetAndHarmlessFieldsAreAccepted) {
  const PeftConfig c = parse(
      R"("use_dora": false, "modules_to_save": null, "layer_replication": [], "bias": "none",
         "an_option_of_2031": {}, "lora_dropout": 0.1, "layers_to_transform": [1],
         "target_modules": ".*q_proj", "init_lora_weights": "gaussian", "task_type": "CAUSAL_LM",
         "base_model_name_or_path": "a/b")");
  EXPECT_EQ(c.base_model(), "a/b");
}

TEST(PeftConfig, ListsOfNamesAreBounded) {
  std::string many = "\"m\"";
  for (int i = 0; i < 1024; ++i) many += ",\"m\"";
  for (const char* field : {"target_parameters", "modules_to_save"}) {
    expect_refused(Code::bad_file, {fmt::format("{} has 1025", field), "1024"},
                   fmt::format("\"{}\": [{}]", field, many));
    for (const char* bad : {"\"m\"", "[3]", "[\"\"]", "{}"}) {
      expect_refused(Code::bad_file, {field, "name"}, fmt::format("\"{}\": {}", field, bad));
    }
  }
}

TEST(PeftConfig, PatternsThatCannotRunAreRefused) {
  expect_refused(Code::unsupported, {"rank_pattern", "(?!gate)", "look-around"},
                 R"("rank_pattern": {"(?!gate).*": 4})");
  expect_refused(Code::unsupported, {"alpha_pattern", "(q"}, R"("alpha_pattern": {"(q": 4})");
  expect_refused(Code::bad_file, {"rank_pattern", "object"}, R"("rank_pattern": [4])");
  std::string many;
  for (int i = 0; i < 1025; ++i) many += fmt::format("{}\"m{}\": 4", i == 0 ? "" : ",", i);
  for (const char* field : {"rank_pattern", "trainable_token_indices"}) {
    expect_refused(Code::bad_file, {fmt::format("{} has 1025", field), "1024"},
                   fmt::format("\"{}\": {{{}}}", field, many));
  }
}

}  // namespace
}  // namespace lorry
