// DBRX: Hugging Face DbrxForCausalLM. One Wqkv, all experts of a layer in three matrices, the down
// projection stored transposed. GPTQModel's dbrx_converted and AMD Quark split the experts, the
// first also q, k and v.
#include <cmath>

#include "base/error.h"
#include "models/architecture.h"
#include "models/common_config.h"

namespace lorry {

namespace {

class Dbrx final : public Architecture {
 public:
  std::string_view model_type() const override { return "dbrx"; }
  bool is(std::string_view type) const override {
    return type == "dbrx" || type == "dbrx_converted";
  }
  Spec spec(const Config& config) const override;
  ModelSlices model(const Spec& spec) const override;
  LayerSlices layer(const Spec& spec, int32_t layer, const Has& has) const override;
  SiteTable sites(const Spec& spec) const override;
};

void read_attention(Spec& s, const Config& config) {
  const Config c = config.child_or_empty("attn_config");
  s.attention.kv_heads = integer32(c, "kv_n_heads", {1, 65536}, 1);
  const double clip = c.number("clip_qkv", {.min = 0, .max = 1e9}, HUGE_VAL);
  s.qkv_clip = static_cast<float>(clip);
  // attn_config.rope_theta wins over rope_parameters, as transformers 4 reads it.
  const double theta = c.number("rope_theta", {.min = 1, .max = 1e12}, 1e4);
  s.rope = rope_spec(config, theta, s.attention.head_dim, s.max_positions);
  if (c.has("rope_theta")) s.rope.theta = theta;
  s.max_positions = usable_positions(s.rope, s.max_positions);
}

void read_experts(Spec& s, const Config& config) {
  const Config c = config.child_or_empty("ffn_config");
  s.ffn = integer32(c, "ffn_hidden_size", {1, kMaxDim}, 3584);
  s.experts = integer32(c, "moe_num_experts", {1, 4096}, 4);
  s.routing.top_k = integer32(c, "moe_top_k", {1, 4096}, 1);
  s.routing.norm_p = c.is_null("moe_normalize_expert_weights")
                         ? 0.0F
                         : static_cast<float>(c.number("moe_normalize_expert_weights",
                                                       {.min = 1e-3, .max = 1e3}, 1.0));
  if (c.boolean("uniform_expert_assignment", false)) {
    fail(Code::unsupported, "{}: \"uniform_expert_assignment\" must be false", c.file());
  }
  s.activation =
      c.has("ffn_act_fn") ? activation_of(c.child("ffn_act_fn"), "name", "silu") : Activation::silu;
}

Spec Dbrx::spec(const Config& c) const {
  Spec s;
  s.model_type = "dbrx";
  s.fused_qkv = true;
  s.norm_centered = true;
  s.vocab = integer32(c, "vocab_size", {1, kMaxVocab}, 32000);
  s.dim = integer32(c, "d_model", {1, kMaxDim}, 2048);
  s.layers = integer32(c, "n_layers", {1, 4096}, 24);
  s.attention.heads = integer32(c, "n_heads", {1, 65536}, 16);
  s.max_positions = c.integer("max_seq_len", {1, kMaxPositions}, 2048);
  if (s.dim % s.attention.heads != 0) {
    fail(Code::bad_file, "{}: d_model {} is no multiple of n_heads {}", c.file(), s.dim,
         s.attention.heads);
  }
  s.attention.head_dim = s.dim / s.attention.heads;
  read_attention(s, c);
  read_experts(s, c);
  if (c.boolean("tie_word_embeddings", false)) {
    fail(Code::unsupported, "{}: DBRX has no tied embeddings; set \"tie_word_embeddings\" to false",
         c.file());
  }
  check_spec(c, s);
  return s;
}

ModelSlices Dbrx::model(const Spec& s) const {
  return {whole("transformer.wte.weight", s.vocab, s.dim),
          vector_of("transformer.norm_f.weight", s.dim), whole("lm_head.weight", s.vocab, s.dim)};
}

// Quantised checkpoints have a Linear for each expert's matrices, w2 stored like the others.
ExpertSlices split_expert(const Spec& s, const std::string& mlp, int64_t e) {
  const std::string p = fmt::format("{}{}.", mlp, e);
  return {whole(p + "w1.weight", s.ffn, s.dim), whole(p + "v1.weight", s.ffn, s.dim),
          whole(p + "w2.weight", s.dim, s.ffn)};
}

LayerSlices Dbrx::layer(const Spec& s, int32_t i, const Has& has) const {
  const std::string p = fmt::format("transformer.blocks.{}.", i);
  const std::string attn = p + "norm_attn_norm.";
  const int64_t f = s.ffn;
  const Shape all{s.experts * f, s.dim};
  LayerSlices l;
  l.attn_norm = vector_of(attn + "norm_1.weight", s.dim);
  l.ffn_norm = vector_of(attn + "norm_2.weight", s.dim);
  if (has(attn + "attn.q_proj.weight")) {
    l.qkv = {whole(attn + "attn.q_proj.weight", s.q_dim(), s.dim),
             whole(attn + "attn.k_proj.weight", s.kv_dim(), s.dim),
             whole(attn + "attn.v_proj.weight", s.kv_dim(), s.dim)};
  } else {
    l.qkv = {whole(attn + "attn.Wqkv.weight", s.qkv_dim(), s.dim)};
  }
  l.o = whole(attn + "attn.out_proj.weight", s.dim, s.dim);
  l.router = whole(p + "ffn.router.layer.weight", s.experts, s.dim);
  const std::string mlp = p + "ffn.experts.mlp.";
  const bool split = has(mlp + "0.w1.weight");
  for (int64_t e = 0; e < s.experts; ++e) {
    l.experts.push_back(split ? split_expert(s, mlp, e)
                              : ExpertSlices{{mlp + "w1", all, e * f, f, false},
                                             {mlp + "v1", all, e * f, f, false},
                                             {mlp + "w2", all, e * f, f, true}});
  }
  return l;
}

SiteTable Dbrx::sites(const Spec& s) const {
  using Form = FusedParameter::Form;
  SiteTable t;
  t.index = s.sites();
  for (int32_t i = 0; i < s.layers; ++i) {
    const std::string p = fmt::format("transformer.blocks.{}.", i);
    const auto add = [&](const std::string& module, SiteKind kind, int64_t in, int64_t out) {
      t.sites.push_back({p + module, {kind, i}, in, out});
    };
    add("norm_attn_norm.norm_1", SiteKind::attn_norm, 1, s.dim);
    add("norm_attn_norm.norm_2", SiteKind::ffn_norm, 1, s.dim);
    add("norm_attn_norm.attn.Wqkv", SiteKind::qkv, s.dim, s.qkv_dim());
    add("norm_attn_norm.attn.out_proj", SiteKind::o, s.dim, s.dim);
    add("ffn.router.layer", SiteKind::router, s.dim, s.experts);
    const std::string mlp = p + "ffn.experts.mlp";
    t.fused.push_back({mlp, "w1", Form::rows_gate, 0, i, s.dim, s.ffn});
    t.fused.push_back({mlp, "v1", Form::rows_up, 1, i, s.dim, s.ffn});
    t.fused.push_back({mlp, "w2", Form::rows_down_transposed, 2, i, s.ffn, s.dim});
  }
  t.sites.push_back({"transformer.wte", {SiteKind::embed}, s.vocab, s.dim});
  t.sites.push_back({"transformer.norm_f", {SiteKind::final_norm}, 1, s.dim});
  t.sites.push_back({"lm_head", {SiteKind::lm_head}, s.dim, s.vocab});
  return t;
}

}  // namespace

const Architecture& dbrx_architecture() {
  static const Dbrx dbrx;
  return dbrx;
}

}  // namespace lorry
