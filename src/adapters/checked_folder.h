// CheckedFolder: an adapter folder, PEFT's or one with Medusa heads or both, whose names, types and
// shapes have been checked against a model. A whole weight that equals the base model's, as PEFT
// saves beside LoRA of an embedding, is left out of the map; a file with whole weights is therefore
// read once to be opened. One thread at a time.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "adapters/lora_map.h"
#include "adapters/medusa.h"
#include "adapters/peft_config.h"
#include "adapters/target.h"
#include "adapters/tensor_set.h"

namespace lorry {

struct CheckedFolder {
  // A whole weight that is the base model's own.
  struct Copy {
    LoraPiece piece;
    Site site;
  };

  std::string label;  // for messages: the name that the caller gave
  PeftConfig config;
  std::unique_ptr<TensorSet> tensors;  // not loaded
  LoraMap map;                         // of tensors, without the copies
  std::vector<Copy> copies = {};
  std::unique_ptr<MedusaFolder> medusa = {};  // null: no heads

  // Throws Error(not_found | bad_file | unsupported | over_capacity).
  static CheckedFolder open(const std::string& folder, const std::string& label,
                            const AdapterTarget& target, const AdapterLimits& limits);
  // Loads the tensors of LoRA, once. Throws as TensorSet::load, and Error(bad_file) where a copy is
  // no longer the base model's.
  void load(const AdapterTarget& target);
};

}  // namespace lorry
