#include "models/synthetic.h"

#include <array>
#include <charconv>

#include "base/error.h"

namespace lorry {

namespace {

// 3.12 B parameters, 0.94 B active per token.
constexpr std::string_view kMiniMixtral = R"({
  "model_type": "mixtral", "hidden_size": 2048, "num_hidden_layers": 16, "num_local_experts": 8,
  "num_experts_per_tok": 2, "intermediate_size": 3584, "num_attention_heads": 32,
  "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 32000, "rope_theta": 1000000.0,
  "max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "tie_word_embeddings": false})";

// Small enough for a test to make in a fraction of a second.
constexpr std::string_view kTinyMixtral = R"({
  "model_type": "mixtral", "hidden_size": 128, "num_hidden_layers": 2, "num_local_experts": 4,
  "num_experts_per_tok": 2, "intermediate_size": 192, "num_attention_heads": 4,
  "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 512, "rope_theta": 10000.0,
  "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "tie_word_embeddings": false})";

// The shapes of the published models; {} is the number of layers.
constexpr std::string_view kMixtral8x7b = R"({{
  "model_type": "mixtral", "hidden_size": 4096, "num_hidden_layers": {}, "num_local_experts": 8,
  "num_experts_per_tok": 2, "intermediate_size": 14336, "num_attention_heads": 32,
  "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 32000, "rope_theta": 1000000.0,
  "max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "tie_word_embeddings": false}})";

constexpr std::string_view kDbrx = R"({{
  "model_type": "dbrx", "d_model": 6144, "n_heads": 48, "n_layers": {}, "max_seq_len": 32768,
  "vocab_size": 100352, "tie_word_embeddings": false,
  "attn_config": {{"clip_qkv": 8, "kv_n_heads": 8, "rope_theta": 500000}},
  "ffn_config": {{"ffn_act_fn": {{"name": "silu"}}, "ffn_hidden_size": 10752, "moe_num_experts": 16,
                 "moe_top_k": 4, "moe_normalize_expert_weights": 1}}}})";

struct Synthetic {
  std::string_view name, config;
  int layers;  // 0: as the config says
};
constexpr std::array kModels{
    Synthetic{"mini-mixtral", kMiniMixtral, 0}, Synthetic{"tiny-mixtral", kTinyMixtral, 0},
    Synthetic{"mixtral-8x7b", kMixtral8x7b, 32}, Synthetic{"dbrx", kDbrx, 40}};

// 0 where the text is not a number of layers.
int layers_of(std::string_view text) {
  int layers = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), layers);
  return error == std::errc{} && end == text.data() + text.size() && layers < 1000 ? layers : 0;
}

}  // namespace

std::string synthetic_config(std::string_view model) {
  const std::string_view asked = model.substr(kSyntheticPrefix.size());
  const std::string_view name = asked.substr(0, asked.find(':'));
  std::string known;
  for (const Synthetic& m : kModels) {
    known += fmt::format("{}{}{}", known.empty() ? "" : ", ", kSyntheticPrefix, m.name);
    if (m.layers > 0) known += "[:LAYERS]";
    if (m.name != name || (m.layers == 0 && asked != name)) continue;
    if (m.layers == 0) return std::string(m.config);
    const int layers = asked == name ? m.layers : layers_of(asked.substr(name.size() + 1));
    if (layers > 0) return fmt::format(fmt::runtime(m.config), layers);
  }
  fail(Code::not_found, "there is no synthetic model \"{}\"; known: {}", model, known);
}

}  // namespace lorry
