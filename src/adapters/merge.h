// Merging: one adapter made of several, with the meaning of PEFT's add_weighted_adapter
// (tuners/lora/model.py). Planned from headers alone (MergePlan), computed by MergedTensors::load,
// one matrix at a time. What PEFT says of tensors holds here of the A and B of each linear, so that
// adapters of all spellings and generations merge, experts' fused parameters among them:
//   t_i = weight * scale of adapter i at the linear, its patterns and rsLoRA included
//   linear           A = sum of sgn(t_i) sqrt|t_i| A_i, B = sum of sqrt|t_i| B_i
//   cat              A = [t_1 A_1; ...], B = [B_1 ...]: the exact weighted sum of the deltas
//   magnitude_prune  linear, with all but the largest values of each matrix set to zero
//   dare_linear      linear, with random values of each matrix set to zero, the others rescaled
//   ties, dare_ties  pruned so; per value the adapters elect a sign, and those that have it are
//                    averaged (merge_math.h)
// The result's scale is 1, or sqrt(r) of the merged config when the first adapter uses rsLoRA: PEFT
// inherits that flag. A linear of one adapter only is made of that one alone. One adapter is always
// `linear`. Where ranks differ, the smaller matrices count as if they ended in zeros.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "adapters/adapter_ref.h"
#include "adapters/checked_folder.h"
#include "adapters/merge_math.h"
#include "adapters/target.h"
#include "base/memory.h"

namespace lorry {

// Throws Error(invalid_argument) unless there are 1 to kMaxMerged adapters, as many weights, all of
// them finite, and a density in (0, 1]. The sentences are LoRAX's where it has one.
void check_merge(size_t n_adapters, std::span<const float> weights, const MergeSpec& spec);

// One of the folders that are merged.
struct MergePart {
  std::string folder;
  float weight = 1;
  std::string label;  // the name that messages use
};

struct MergeSource {
  CheckedFolder folder;
  float weight = 1;
};

struct MergePlan {
  // What the merged adapter_config.json would say: r = lora_alpha = this, no patterns. A linear may
  // have a lower rank in the map, where PEFT's matrices end in zeros; its scale follows from this.
  int32_t rank = 0;
  bool use_rslora = false;  // as the first adapter
  std::vector<TensorInfo> tensors;
  LoraMap map;  // of these tensors

  // Tensor i is a sum over pieces of the sources' maps.
  struct Recipe {
    std::vector<MergeTerm> terms;
    std::vector<std::pair<int32_t, int32_t>> pieces;  // (source, piece) of each term
    int32_t site = 0;                                 // the first that uses it
    bool is_b = false;
  };
  std::vector<Recipe> recipes;
};

struct MergeLimits {
  int64_t max_bytes = 0;  // of the merged tensors
  int32_t max_rank = 0;   // of a linear
};

// Throws Error(unsupported) naming the tensor for what cannot be merged (DoRA, aLoRA, whole
// weights, biases; experts that one adapter adapts each and another all together, unless by cat),
// Error(invalid_argument) for a rank or a weight and Error(over_capacity) for a size over the
// limits. Requires: check_merge has passed; sources are not loaded.
MergePlan plan_merge(std::span<const MergeSource> sources, const MergeSpec& spec,
                     const SiteIndex& index, const MergeLimits& limits);

// The merged tensors. load() loads the sources, merges, and lets go of them; equal sources, weights
// and spec give equal bits. It throws what the sources' load() throws.
class MergedTensors final : public TensorSet {
 public:
  // `label` is what path() says: "cat(a*0.7,b*0.3)". The plan is of these sources.
  MergedTensors(std::string label, std::vector<MergeSource> sources, const MergeSpec& spec,
                MergePlan plan, AdapterTarget target);

  const std::string& path() const override { return label_; }
  const std::vector<TensorInfo>& tensors() const override { return plan_.tensors; }
  void load(Dtype act) override;
  Tensor tensor(const TensorInfo& info) const override;

 private:
  void compute(const MergePlan::Recipe& recipe, Tensor out) const;
  void read_term(const MergePlan::Recipe& recipe, size_t i, Matrix& into) const;

  std::string label_;
  std::vector<MergeSource> sources_;
  MergeSpec spec_;
  MergePlan plan_;
  AdapterTarget target_;
  Buffer memory_;
};

// The folders checked and their merge planned, as if it were one folder; its config is the first
// one's. Throws as CheckedFolder::open, check_merge and plan_merge; max_bytes bounds the sum of the
// files too.
CheckedFolder merge_folders(std::span<const MergePart> parts, const MergeSpec& spec,
                            const AdapterTarget& target, const AdapterLimits& limits);

}  // namespace lorry
