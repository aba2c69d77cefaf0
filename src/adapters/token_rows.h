// Single rows of an embedding or output matrix (PEFT's trainable_token_indices): the part of
// map_lora that places them. One mapping's own; one thread.
#pragma once
#include <cstdint>
#include <set>
#include <string>

#include "adapters/patch_table.h"
#include "adapters/peft_config.h"
#include "ops/lora.h"

namespace lorry {

class TokenRows {
 public:
  // All of them outlive this.
  TokenRows(const PeftConfig& config, const SiteTable& table, const TensorList& list,
            PatchTable& patches)
      : config_(config), table_(table), list_(list), patches_(patches) {}

  // The rows of `module` are in this tensor; `site`: of that name, null where the model has none.
  // Throws Error(bad_file) where they fit nowhere.
  void place(const std::string& module, const SiteInfo* site, int32_t tensor);
  // After the last place(): throws Error(bad_file) for tokens that the config lists and no tensor
  // holds. With a tied head PEFT may list them for the output layer too and save their rows once.
  void check_lists() const;
  // For a tied head: rows of the embedding are rows of the output layer too, unless that has its
  // own.
  void tie();

 private:
  const PeftConfig::TokenList* list_of(const std::string& module, SiteKind kind) const;

  const PeftConfig& config_;
  const SiteTable& table_;
  const TensorList& list_;
  PatchTable& patches_;
  std::set<const PeftConfig::TokenList*> used_;
};

}  // namespace lorry
