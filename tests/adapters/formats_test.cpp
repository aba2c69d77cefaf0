// What PEFT writes beside plain LoRA pairs and DoRA: whole weights, embeddings, single token rows.
// The values are those of the file, at the places that PEFT's names mean.
#include "adapters/formats.h"

#include <algorithm>

#include <gtest/gtest.h>

#include "adapters/describe.h"

namespace lorry::test {
namespace {

TEST_F(Formats, modules_to_save_replace_any_weight) {
  Draft d;
  d.config = config(R"("modules_to_save": ["lm_head", "embed_tokens", "norm", "layernorm", "gate",
                                           "self_attn", "w2"])");
  const std::string layer = "model.layers.1.";
  d.add("lm_head.weight", {kVocab, kHidden}).add(embed_ + ".weight", {kVocab, kHidden});
  d.add("model.norm.weight", {kHidden}).add(layer + "input_layernorm.weight", {kHidden});
  d.add(layer + "post_attention_layernorm.weight", {kHidden});
  d.add(layer + "block_sparse_moe.gate.weight", {kExperts, kHidden});
  d.add(layer + "self_attn.k_proj.weight", {4, kHidden});
  d.add(layer + "block_sparse_moe.experts.2.w2.weight", {kHidden, kWidth});
  const auto adapter = load(d);
  EXPECT_EQ(adapter->sites().size(), 8U);
  EXPECT_EQ(adapter->max_rank(), 0);
  EXPECT_TRUE(adapter->view().norms);
  const std::vector<std::pair<Site, std::string>> places = {
      {{SiteKind::lm_head}, "lm_head"},
      {{SiteKind::embed}, embed_},
      {{SiteKind::final_norm}, "model.norm"},
      {{SiteKind::attn_norm, 1}, layer + "input_layernorm"},
      {{SiteKind::ffn_norm, 1}, layer + "post_attention_layernorm"},
      {{SiteKind::router, 1}, layer + "block_sparse_moe.gate"},
      {{SiteKind::k, 1}, layer + "self_attn.k_proj"},
      {{SiteKind::down, 1, 2}, layer + "block_sparse_moe.experts.2.w2"}};
  for (const auto& [site, module] : places) {
    const SitePatch p = patch(*adapter, site);
    ASSERT_NE(p.change, nullptr) << module;
    EXPECT_EQ(p.rank, 0);
    const auto& values = d.tensors.at("base_model.model." + module + ".weight").second;
    EXPECT_TRUE(std::equal(values.begin(), values.end(), floats(p.change->weight))) << module;
  }
  EXPECT_TRUE(patch(*adapter, {SiteKind::q, 1}).neutral());
}

TEST_F(Formats, whole_parameters_of_all_experts_are_taken_apart) {
  const std::string mlp = "model.layers.0.mlp.";
  Draft d;
  d.config = config(R"("modules_to_save": ["mlp.experts", "mlp.gate"])");
  d.add(mlp + "experts.gate_up_proj", {kExperts, 2 * kWidth, kHidden});
  d.add(mlp + "experts.down_proj", {kExperts, kHidden, kWidth});
  d.add(mlp + "gate.weight", {kExperts, kHidden});
  const auto adapter = load(d);
  EXPECT_EQ(adapter->sites().size(), static_cast<size_t>(3 * kExperts + 1));
  for (int32_t e = 0; e < kExperts; ++e) {
    const auto* gate = floats(patch(*adapter, {SiteKind::gate, 0, e}).change->weight);
    const auto* up = floats(patch(*adapter, {SiteKind::up, 0, e}).change->weight);
    const auto* down = floats(patch(*adapter, {SiteKind::down, 0, e}).change->weight);
    for (int64_t i = 0; i < kWidth * kHidden; ++i) {
      const int64_t at = e * 2 * kWidth * kHidden + i;
      EXPECT_EQ(double{gate[i]}, value(d, mlp + "experts.gate_up_proj", at));
      EXPECT_EQ(double{up[i]}, value(d, mlp + "experts.gate_up_proj", at + kWidth * kHidden));
      EXPECT_EQ(double{down[i]}, value(d, mlp + "experts.down_proj", e * kWidth * kHidden + i));
    }
  }
}

TEST_F(Formats, a_whole_w2_of_dbrx_is_turned) {
  const SiteTable table = dbrx_sites({1, 2, kHidden, 8, 4, kWidth, kVocab});
  const std::string w2 = "transformer.blocks.0.ffn.experts.mlp.w2";
  Draft d;
  d.add(w2, {2 * kWidth, kHidden}).add("transformer.wte.weight", {kVocab, kHidden});
  const auto adapter = load(d, table);
  EXPECT_EQ(adapter->sites().size(), 3U);
  for (int32_t e = 0; e < 2; ++e) {
    const SitePatch& p =
        adapter->view().patches[static_cast<size_t>(table.index({SiteKind::down, 0, e}))];
    for (int64_t o = 0; o < kHidden; ++o) {
      for (int64_t i = 0; i < kWidth; ++i) {
        EXPECT_EQ(double{floats(p.change->weight)[o * kWidth + i]},
                  value(d, w2, (e * kWidth + i) * kHidden + o));
      }
    }
  }
}

TEST_F(Formats, a_weight_that_equals_the_base_takes_no_room) {
  Draft d;
  d.pair("lm_head", 2, kHidden, kVocab);
  const auto plain = load(d);
  for (const char* name : {"lm_head.base_layer.weight", "model.embed_tokens.weight"}) {
    const bool head = std::string(name).starts_with("lm_head");
    d.add(name, {kVocab, kHidden});
    auto& values = d.tensors.at("base_model.model." + std::string(name)).second;
    base_rows_of(view(values.data(), Dtype::f32, {kVocab, kHidden}),
                 {head ? SiteKind::lm_head : SiteKind::embed}, 0);
  }
  const auto adapter = load(d);
  ASSERT_EQ(adapter->sites().size(), 1U);
  EXPECT_FALSE(adapter->sites()[0].replaced);
  EXPECT_EQ(adapter->digest(), plain->digest());
  EXPECT_EQ(adapter->bytes(), plain->bytes());
  d.tensors.at("base_model.model.lm_head.base_layer.weight").second[79] += 0.25F;
  EXPECT_TRUE(load(d)->sites()[0].replaced);
  EXPECT_NE(load(d)->digest(), plain->digest());
}

TEST_F(Formats, a_copy_that_changes_while_it_is_loaded_is_found_out) {
  Draft d;
  d.pair(q0_, 2, kHidden, 8).add("model.norm.weight", {kHidden});
  auto& values = d.tensors.at("base_model.model.model.norm.weight").second;
  base_rows_of(view(values.data(), Dtype::f32, {1, kHidden}), {SiteKind::final_norm}, 0);
  const std::string path = d.write(temp_.path() + "/a");
  const auto folder = AdapterFolder::open(path, {&table_, &ops_, base_rows_of}, {});
  values[0] += 1.0F;
  d.write(path);
  expect_error(Code::bad_file, {"changed while"}, [&] { folder->read(); });
}

TEST_F(Formats, what_modules_to_save_promises_must_be_there) {
  Draft d;
  d.config = config(R"("modules_to_save": ["norm", "score"])");
  d.pair(q0_, 2, kHidden, 8).add("model.norm.weight", {kHidden});
  refused(Code::bad_file,
          {"adapter_config.json", "modules_to_save", "\"score\"", "no weight of it"}, d);
}

TEST_F(Formats, two_weights_of_one_place_are_refused) {
  Draft d;
  d.add("model.layers.0.block_sparse_moe.gate.weight", {kExperts, kHidden});
  d.add("model.layers.0.mlp.gate.weight", {kExperts, kHidden});
  refused(Code::bad_file, {"mlp.gate.weight", "already replaced", "block_sparse_moe.gate.weight"},
          d);
}

// ---- embeddings and single tokens ----

TEST_F(Formats, lora_of_an_embedding_is_named_as_such) {
  Draft d;
  d.pair(embed_, 2, kVocab, kHidden);
  refused(Code::bad_file, {embed_, "is an embedding", "lora_embedding_A"}, d);
  Draft q;
  q.add(q0_ + ".lora_embedding_A", {2, kHidden}).add(q0_ + ".lora_embedding_B", {8, 2});
  refused(Code::bad_file, {q0_, "is a linear", "lora_A.weight"}, q);
  Draft norm;
  norm.pair("model.norm", 2, 1, kHidden);
  refused(Code::bad_file, {"model.norm", "no linear"}, norm);
  Draft wrong;
  wrong.add(embed_ + ".lora_embedding_A", {2, kVocab}).add(embed_ + ".lora_embedding_B", {7, 2});
  refused(Code::bad_file, {"lora_embedding_B", "expected shape [8, 2]", "found [7, 2]"}, wrong);
}

// Rows in the order of the config's ids; the adapter keeps them by rising id.
void expect_rows(const SitePatch& p, const std::vector<int32_t>& ids,
                 const std::vector<float>& rows) {
  ASSERT_NE(p.change, nullptr);
  ASSERT_EQ(p.change->n_tokens, static_cast<int32_t>(ids.size()));
  for (size_t i = 0; i < ids.size(); ++i) {
    const int32_t* end = p.change->tokens + ids.size();
    const int32_t* at = std::find(p.change->tokens, end, ids[i]);
    ASSERT_NE(at, end) << ids[i];
    const auto* row =
        reinterpret_cast<const float*>(p.change->token_rows) + (at - p.change->tokens) * kHidden;
    EXPECT_TRUE(std::equal(row, row + kHidden, rows.data() + i * kHidden)) << ids[i];
  }
  EXPECT_TRUE(std::is_sorted(p.change->tokens, p.change->tokens + ids.size()));
}

TEST_F(Formats, trainable_tokens_replace_rows_of_the_embedding) {
  const std::string delta = embed_ + ".token_adapter.trainable_tokens_delta";
  for (const char* tokens : {"[7, 0, 3]", R"({"embed_tokens": [7, 0, 3]})"}) {
    Draft d;
    d.config = config(fmt::format("\"trainable_token_indices\": {}", tokens));
    d.add(delta, {3, kHidden});
    const auto adapter = load(d);
    const std::vector<float>& rows = d.tensors.at("base_model.model." + delta).second;
    expect_rows(patch(*adapter, {SiteKind::embed}), {7, 0, 3}, rows);
    EXPECT_TRUE(patch(*adapter, {SiteKind::lm_head}).neutral());
    EXPECT_EQ(adapter->sites()[0].token_rows, 3);
    EXPECT_NE(describe_text(*adapter).find("embed      3 token rows, 1 site\n"), std::string::npos)
        << describe_text(*adapter);
  }
}

TEST_F(Formats, trainable_tokens_of_a_tied_model_reach_the_output) {
  const std::string delta = ".token_adapter.trainable_tokens_delta";
  table_.tied_head = true;
  Draft d;
  d.config = config(R"("trainable_token_indices": {"embed_tokens": [5, 2], "lm_head": [5, 2]})");
  d.add(embed_ + delta, {2, kHidden});
  const auto adapter = load(d);
  const std::vector<float>& rows = d.tensors.at("base_model.model." + embed_ + delta).second;
  for (const SiteKind kind : {SiteKind::embed, SiteKind::lm_head}) {
    expect_rows(patch(*adapter, {kind}), {5, 2}, rows);
  }
  // Lists that differ are not tied: each has its rows.
  d.config = config(R"("trainable_token_indices": {"embed_tokens": [5, 2], "lm_head": [9]})");
  refused(Code::bad_file, {"trainable_token_indices", "lm_head", "holds no rows"}, d);
  d.add("lm_head" + delta, {1, kHidden});
  expect_rows(patch(*load(d), {SiteKind::lm_head}), {9},
              d.tensors.at("base_model.model.lm_head" + delta).second);
}

TEST_F(Formats, weights_that_are_kept_tied_must_both_be_there) {
  Draft d;
  d.config = config(R"("ensure_weight_tying": true)");
  d.add("lm_head.weight", {kVocab, kHidden});
  EXPECT_EQ(load(d)->sites().size(), 1U) << "not tied in this model";
  table_.tied_head = true;
  refused(Code::unsupported, {"ensure_weight_tying", "only one of them"}, d);
  d.add(embed_ + ".weight", {kVocab, kHidden});
  EXPECT_EQ(load(d)->sites().size(), 2U);
}

TEST_F(Formats, trainable_tokens_that_do_not_fit_are_refused) {
  const std::string delta = ".token_adapter.trainable_tokens_delta";
  const auto with = [&](const std::string& tokens, Shape shape) {
    Draft d;
    d.config = config("\"trainable_token_indices\": " + tokens);
    return d.add(embed_ + delta, shape);
  };
  refused(Code::bad_file, {"trainable_token_indices names token 10", "the model has 10"},
          with("[1, 10]", {2, kHidden}));
  refused(Code::bad_file, {"more than once"}, with("[1, 3, 1]", {3, kHidden}));
  refused(Code::bad_file, {"holds -1", "token id"}, with("[-1]", {1, kHidden}));
  refused(Code::bad_file, {"trainable_token_indices is 5", "list"}, with("5", {1, kHidden}));
  refused(Code::bad_file, {delta, "expected shape [2, 8] (2 tokens", "found [3, 8]"},
          with("[1, 2]", {3, kHidden}));
  refused(Code::bad_file, {delta, "names no tokens of"}, with(R"({"lm_head": [1]})", {1, kHidden}));
  refused(Code::bad_file, {delta, "names no tokens of"}, with("[]", {1, kHidden}));
  Draft nowhere = with("[1]", {1, kHidden});
  refused(Code::bad_file, {q0_, "no embedding"}, nowhere.add(q0_ + delta, {1, kHidden}));
  Draft missing;
  missing.config = config(R"("trainable_token_indices": [1])");
  refused(Code::bad_file, {"trainable_token_indices names 1 tokens", "holds no rows"},
          missing.pair(q0_, 2, kHidden, 8));
  Draft both = with("[1]", {1, kHidden});
  both.add(embed_ + ".lora_embedding_A", {2, kVocab});
  both.add(embed_ + ".lora_embedding_B", {kHidden, 2});
  refused(Code::unsupported, {delta, "cannot be applied together"}, both);
}

// ---- activated LoRA ----

// PEFT adapts linears alone from a token on; what else it has would be applied to every row.
TEST_F(Formats, activated_lora_is_of_linears_alone) {
  const auto with = [&] {
    Draft d;
    d.config = config(R"("alora_invocation_tokens": [1, 2])");
    return d.pair(q0_, 2, kHidden, 8);
  };
  EXPECT_EQ(load(with())->invocation_tokens().size(), 2U);
  refused(Code::unsupported, {"model.norm.weight", "alora_invocation_tokens"},
          with().add("model.norm.weight", {kHidden}));
  refused(Code::unsupported, {"lora_embedding_A", "alora_invocation_tokens"},
          with()
              .add(embed_ + ".lora_embedding_A", {2, kVocab})
              .add(embed_ + ".lora_embedding_B", {kHidden, 2}));
  Draft fused = with();
  fused.config = config(R"("alora_invocation_tokens": [1], "target_parameters": ["down_proj"])");
  fused.pair("model.layers.0.mlp.experts", 2 * kExperts, kWidth, kHidden);
  refused(Code::unsupported, {"alora_invocation_tokens", "target_parameters"}, fused);
  Draft dora = with();
  dora.config = config(R"("alora_invocation_tokens": [1], "use_dora": true)");
  refused(Code::unsupported, {"alora_invocation_tokens", "use_dora"},
          dora.add(q0_ + ".lora_magnitude_vector", {8}));
}

TEST_F(Formats, the_digest_covers_all_that_is_applied) {
  std::vector<Digest> digests;
  const auto add = [&](const Draft& d) {
    const Digest digest = load(d)->digest();
    EXPECT_EQ(std::count(digests.begin(), digests.end(), digest), 0) << digests.size();
    digests.push_back(digest);
  };
  Draft d;
  add(d.pair(q0_, 2, kHidden, 8));
  Draft norm = d;
  add(norm.add("model.norm.weight", {kHidden}));
  Draft other_norm = d;
  add(other_norm.add("model.norm.weight", {kHidden}, 2));
  Draft dora = d;
  dora.config = config(R"("use_dora": true)");
  add(dora.add(q0_ + ".lora_magnitude_vector", {8}));
  Draft tokens = d;
  tokens.config = config(R"("trainable_token_indices": [1, 4])");
  add(tokens.add(embed_ + ".token_adapter.trainable_tokens_delta", {2, kHidden}));
  tokens.config = config(R"("trainable_token_indices": [1, 5])");
  add(tokens);
}

}  // namespace
}  // namespace lorry::test
