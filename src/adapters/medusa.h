// MedusaFolder: the Medusa heads of an adapter folder in LoRAX's format, checked against a model
// before a weight is read. config.json names medusa_num_heads, medusa_num_layers and version; the
// weights are in medusa_lm_head.safetensors or in the folder's only other safetensors file. A LoRA
// adapter may stand beside them. Whether heads have output matrices of their own (version 1) or go
// through the model's output layer (version 2) is told by the tensors, as in LoRAX: a file without
// a version can be either. Every tensor is used or loading fails by its name; what else config.json
// says cannot change a text and is not looked at. One thread at a time.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "adapters/target.h"
#include "adapters/tensor_set.h"
#include "base/sha256.h"
#include "ops/lora.h"
#include "ops/ops.h"

namespace lorry {

// Whether `folder` holds heads: a config.json that names medusa_num_heads. Throws Error(bad_file)
// for a config.json that is no JSON.
bool has_medusa(const std::string& folder);

class MedusaFolder {
 public:
  // Requires: has_medusa(folder). Throws Error(bad_file | unsupported | over_capacity | not_found).
  MedusaFolder(const std::string& folder, const AdapterTarget& target, const AdapterLimits& limits);

  const std::string& path() const { return tensors_->path(); }
  const std::string& base_model() const { return base_model_; }
  // Bytes of the heads in memory, as a rank packs them.
  size_t packed_bytes(int rank) const;
  // Reads and packs the heads into `memory`, which is 64-byte aligned and has packed_bytes().
  // Called once. Throws Error(bad_file) for values that are NaN or infinite.
  MedusaView read(std::byte* memory);
  // Adds what the heads are to the identity of their adapter. Requires: after read().
  void hash(Sha256& hash) const;

 private:
  void read_config(const std::string& path, int32_t max_heads);
  void check_tensors();
  void expect(const TensorInfo* found, const std::string& name, const Shape& shape) const;
  const TensorInfo* find(const std::string& name) const;
  std::string weight_of(int32_t head, int32_t block) const;
  std::string bias_of(int32_t head, int32_t block) const;
  std::string output_of(int32_t head) const;

  MedusaShape shape_of(int rank) const;

  const Ops* ops_;
  int rank_;
  std::vector<Range> vocab_;  // the part of it that each rank has
  MedusaShape shape_;         // of the file
  int32_t version_ = 0;       // 0: not said
  std::string base_model_;
  std::unique_ptr<TensorSet> tensors_;
};

}  // namespace lorry
