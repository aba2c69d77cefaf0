// Mixtral: Hugging Face MixtralForCausalLM, with the checkpoint spelling of transformers 4 (an
// expert a tensor) and the fused one of transformers 5.
#include <array>

#include "base/error.h"
#include "models/architecture.h"
#include "models/common_config.h"

namespace lorry {

namespace {

class Mixtral final : public Architecture {
 public:
  std::string_view model_type() const override { return "mixtral"; }
  Spec spec(const Config& config) const override;
  ModelSlices model(const Spec& spec) const override;
  LayerSlices layer(const Spec& spec, int32_t layer, const Has& has) const override;
  SiteTable sites(const Spec& spec) const override;
};

Spec Mixtral::spec(const Config& c) const {
  Spec s;
  s.model_type = "mixtral";
  s.vocab = integer32(c, "vocab_size", {1, kMaxVocab}, 32000);
  s.dim = integer32(c, "hidden_size", {1, kMaxDim}, 4096);
  s.ffn = integer32(c, "intermediate_size", {1, kMaxDim}, 14336);
  s.layers = integer32(c, "num_hidden_layers", {1, 4096}, 32);
  s.attention.heads = integer32(c, "num_attention_heads", {1, 65536}, 32);
  s.attention.kv_heads = integer32(c, "num_key_value_heads", {1, 65536}, 8);
  if (!c.has("head_dim") && s.dim % s.attention.heads != 0) {
    fail(Code::bad_file,
         "{}: hidden_size {} is no multiple of num_attention_heads {}, and there is no head_dim",
         c.file(), s.dim, s.attention.heads);
  }
  s.attention.head_dim = integer32(c, "head_dim", {2, 4096}, s.dim / s.attention.heads);
  s.attention.window = integer32(c, "sliding_window", {1, kMaxPositions}, 0);
  s.experts = integer32(c, "num_local_experts", {1, 4096}, 8);
  s.routing.top_k = integer32(c, "num_experts_per_tok", {1, 4096}, 2);
  s.activation = activation_of(c, "hidden_act", "silu");
  s.norm_eps = static_cast<float>(c.number("rms_norm_eps", {.min = 0, .max = 1}, 1e-5));
  s.max_positions = c.integer("max_position_embeddings", {1, kMaxPositions}, 131072);
  const double theta = c.number("rope_theta", {.min = 1, .max = 1e12}, 1e6);
  s.rope = rope_spec(c, theta, s.attention.head_dim, s.max_positions);
  s.max_positions = usable_positions(s.rope, s.max_positions);
  s.tied_head = c.boolean("tie_word_embeddings", false);
  check_spec(c, s);
  return s;
}

ModelSlices Mixtral::model(const Spec& s) const {
  const char* head = s.tied_head ? "model.embed_tokens.weight" : "lm_head.weight";
  return {whole("model.embed_tokens.weight", s.vocab, s.dim), vector_of("model.norm.weight", s.dim),
          whole(head, s.vocab, s.dim)};
}

ExpertSlices fused_expert(const Spec& s, const std::string& mlp, int64_t e) {
  const int64_t f = s.ffn;
  const Shape gate_up{s.experts, 2 * f, s.dim};
  const std::string name = mlp + "experts.gate_up_proj";
  return {{name, gate_up, e * 2 * f, f, false},
          {name, gate_up, e * 2 * f + f, f, false},
          {mlp + "experts.down_proj", {s.experts, s.dim, f}, e * s.dim, s.dim, false}};
}

LayerSlices Mixtral::layer(const Spec& s, int32_t i, const Has& has) const {
  const std::string p = fmt::format("model.layers.{}.", i);
  const std::string attn = p + "self_attn.";
  LayerSlices l;
  l.attn_norm = vector_of(p + "input_layernorm.weight", s.dim);
  l.ffn_norm = vector_of(p + "post_attention_layernorm.weight", s.dim);
  l.qkv = {whole(attn + "q_proj.weight", s.q_dim(), s.dim),
           whole(attn + "k_proj.weight", s.kv_dim(), s.dim),
           whole(attn + "v_proj.weight", s.kv_dim(), s.dim)};
  l.o = whole(attn + "o_proj.weight", s.dim, s.q_dim());
  const bool fused = has(p + "mlp.experts.gate_up_proj");
  const std::string mlp = p + (fused ? "mlp." : "block_sparse_moe.");
  l.router = whole(mlp + "gate.weight", s.experts, s.dim);
  for (int32_t e = 0; e < s.experts; ++e) {
    const std::string expert = fmt::format("{}experts.{}.", mlp, e);
    l.experts.push_back(fused ? fused_expert(s, mlp, e)
                              : ExpertSlices{whole(expert + "w1.weight", s.ffn, s.dim),
                                             whole(expert + "w3.weight", s.ffn, s.dim),
                                             whole(expert + "w2.weight", s.dim, s.ffn)});
  }
  return l;
}

void add_layer_sites(SiteTable& t, const Spec& s, int32_t i) {
  using Form = FusedParameter::Form;
  const std::string p = fmt::format("model.layers.{}.", i);
  const auto add = [&](const std::string& module, Site site, int64_t in, int64_t out) {
    t.sites.push_back({p + module, site, in, out});
  };
  add("self_attn.q_proj", {SiteKind::q, i}, s.dim, s.q_dim());
  add("self_attn.k_proj", {SiteKind::k, i}, s.dim, s.kv_dim());
  add("self_attn.v_proj", {SiteKind::v, i}, s.dim, s.kv_dim());
  add("self_attn.o_proj", {SiteKind::o, i}, s.q_dim(), s.dim);
  add("block_sparse_moe.gate", {SiteKind::router, i}, s.dim, s.experts);
  for (int32_t e = 0; e < s.experts; ++e) {
    const std::string expert = fmt::format("block_sparse_moe.experts.{}.", e);
    add(expert + "w1", {SiteKind::gate, i, e}, s.dim, s.ffn);
    add(expert + "w3", {SiteKind::up, i, e}, s.dim, s.ffn);
    add(expert + "w2", {SiteKind::down, i, e}, s.ffn, s.dim);
  }
  t.sites.push_back({p + "input_layernorm", {SiteKind::attn_norm, i}, 1, s.dim});
  t.sites.push_back({p + "post_attention_layernorm", {SiteKind::ffn_norm, i}, 1, s.dim});
  // transformers 5 keeps a layer's experts as two parameters, and its router as one; adapters made
  // for either generation load on either checkpoint.
  for (const std::string mlp : {"mlp", "block_sparse_moe"}) {
    const std::string experts = p + mlp + ".experts";
    t.fused.push_back({experts, "gate_up_proj", Form::stacked_gate_up, 0, i, s.dim, 2 * s.ffn});
    t.fused.push_back({experts, "down_proj", Form::stacked_down, 1, i, s.ffn, s.dim});
    t.fused.push_back({p + mlp + ".gate", "weight", Form::plain, 0, i, s.dim, s.experts});
  }
}

SiteTable Mixtral::sites(const Spec& s) const {
  SiteTable t;
  t.index = s.sites();
  t.tied_head = s.tied_head;
  for (int32_t i = 0; i < s.layers; ++i) add_layer_sites(t, s, i);
  t.sites.push_back({"model.embed_tokens", {SiteKind::embed}, s.vocab, s.dim});
  t.sites.push_back({"model.norm", {SiteKind::final_norm}, 1, s.dim});
  t.sites.push_back({"lm_head", {SiteKind::lm_head}, s.dim, s.vocab});
  return t;
}

}  // namespace

const Architecture& mixtral_architecture() {
  static const Mixtral mixtral;
  return mixtral;
}

}  // namespace lorry
