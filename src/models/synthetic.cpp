#include "models/synthetic.h"

#include <array>
#include <utility>

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

constexpr std::array<std::pair<std::string_view, std::string_view>, 2> kModels{
    {{"mini-mixtral", kMiniMixtral}, {"tiny-mixtral", kTinyMixtral}}};

}  // namespace

std::string synthetic_config(std::string_view model) {
  const std::string_view name = model.substr(kSyntheticPrefix.size());
  std::string known;
  for (const auto& [key, config] : kModels) {
    if (key == name) return std::string(config);
    known += fmt::format("{}{}{}", known.empty() ? "" : ", ", kSyntheticPrefix, key);
  }
  fail(Code::not_found, "there is no synthetic model \"{}\"; known: {}", model, known);
}

}  // namespace lorry
