// PeftConfig: what adapter_config.json says about the numbers. Every field that would change an
// adapter's result is either honoured here or refused by name and value; a field that Lorry does
// not know is accepted only while it is null, false, 0 or empty.
// Immutable after parsing; any thread may read it.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"

namespace re2 {
class RE2;
}

namespace lorry {

constexpr size_t kMaxInvocationTokens = 64;

class PeftConfig {
 public:
  // Throws Error(bad_file | unsupported | not_found) naming the file, the field, its value and the
  // limit. max_rank bounds r and every value of rank_pattern.
  static PeftConfig read(const std::string& path, int32_t max_rank);
  static PeftConfig parse(const json::value& value, std::string path, int32_t max_rank);

  // Of an adapter without LoRA.
  static PeftConfig none(std::string base_model);

  PeftConfig(PeftConfig&&) noexcept;
  PeftConfig& operator=(PeftConfig&&) noexcept;
  ~PeftConfig();

  // The rank that the file promises for a module path ("model.layers.0.self_attn.q_proj"), or for
  // "<module>.<parameter>" where target_parameters is used: the first pattern of rank_pattern, in
  // the file's order, that matches `(.*\.)?(pattern)` to the end; else r.
  int32_t rank_of(const std::string& module) const;
  // alpha / rank, with use_rslora alpha / sqrt(rank); alpha by alpha_pattern like rank_of.
  float scale_of(const std::string& module, int32_t rank) const;
  // The largest of r and the values of rank_pattern.
  int32_t largest_rank() const;
  bool use_rslora() const { return use_rslora_; }
  // Whether target_parameters lists "<module>.<parameter>", or a dotted suffix of it.
  bool targets(const std::string& module, const std::string& parameter) const;
  // Activated LoRA: the adapter is used from the last place where these tokens stand in the prompt;
  // empty: from the first token on. 1 to kMaxInvocationTokens ids >= 0, not yet compared with a
  // vocabulary.
  const std::vector<int32_t>& invocation_tokens() const { return invocation_tokens_; }
  // Every pair of a linear or an embedding has a magnitude.
  bool use_dora() const { return use_dora_; }
  // With a tied output layer, what is done to the embedding is done to the output layer too; PEFT
  // then saves both.
  bool ensure_weight_tying() const { return ensure_weight_tying_; }
  // Modules whose weights the file holds whole; a name matches a module path, or that of a module
  // around it, by its end.
  const std::vector<std::string>& modules_to_save() const { return modules_to_save_; }
  // trainable_token_indices: the tokens whose rows the file holds, by the end of the path of an
  // embedding or output module; an empty name means the input embedding. Distinct ids >= 0, not
  // yet compared with a vocabulary.
  struct TokenList {
    std::string module;
    std::vector<int32_t> ids;
  };
  const std::vector<TokenList>& token_lists() const { return token_lists_; }
  // PEFT before 0.19 (and files without a version) stores stacked parameters the other way round.
  bool old_stacking() const { return old_stacking_; }

  const std::string& path() const { return path_; }
  const std::string& base_model() const { return base_model_; }

 private:
  template <class T>
  struct Pattern {
    std::unique_ptr<re2::RE2> regex;
    T value{};
  };

  PeftConfig();
  void parse_numbers(const json::object& o, int32_t max_rank);
  void parse_tokens(const json::object& o);
  template <class T>
  static const T& first_match(const std::vector<Pattern<T>>& patterns, const std::string& module,
                              const T& otherwise);

  std::string path_;
  std::string base_model_;
  int32_t r_ = 0;
  double alpha_ = 0;
  bool use_rslora_ = false;
  bool use_dora_ = false;
  bool ensure_weight_tying_ = false;
  bool old_stacking_ = false;
  std::vector<Pattern<int32_t>> ranks_;
  std::vector<Pattern<double>> alphas_;
  std::vector<std::string> target_parameters_, modules_to_save_;
  std::vector<TokenList> token_lists_;
  std::vector<int32_t> invocation_tokens_;
};

}  // namespace lorry
