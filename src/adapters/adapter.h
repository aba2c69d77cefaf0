// Adapter: a LoRA adapter in memory, packed for one backend and ready to be applied.
// AdapterFolder: a PEFT folder, or several to be merged, whose names and shapes have been checked
// against a model and whose size is known, before a weight is read. Loading is: open (checks,
// plan), then read (weights). Everything in the folder is applied exactly or loading fails with a
// sentence that names the field or tensor. Distinct objects may be used by distinct threads; an
// Adapter is immutable.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "adapters/adapter_ref.h"
#include "adapters/lora_map.h"
#include "adapters/peft_config.h"
#include "base/memory.h"
#include "base/sha256.h"
#include "ops/lora.h"
#include "ops/ops.h"

namespace lorry {

struct AdapterLimits {
  int64_t max_bytes = int64_t{4} << 30;  // of adapter_model.safetensors, and of the packed form
  int32_t max_rank = 512;
};

// Whether `copy` has the values of the base model's weight of `module` ("lm_head"); false where the
// module is unknown. PEFT saves such copies next to adapters of lm_head and embed_tokens. Must be
// safe to call from any thread.
using SameAsBase = std::function<bool(const std::string& module, const Tensor& copy)>;

// A model as adapters see it. What it points to outlives every folder and registry made with it.
struct AdapterTarget {
  const SiteTable* sites = nullptr;
  const Ops* ops = nullptr;      // only the const packing calls are used
  SameAsBase same_as_base = {};  // empty: nothing can be compared, copies are refused
};

struct AppliedSite {
  Site site;
  std::string module;  // with the parameter's name where target_parameters is used
  int32_t rank = 0;
  float scale = 0;
};

class Adapter {
 public:
  AdapterView view() const { return {pairs_}; }
  // SHA-256 over sites, ranks, scales and the tensors as stored: equal digests, equal adapters.
  const Digest& digest() const { return digest_; }
  size_t bytes() const { return memory_.size(); }
  int32_t max_rank() const { return max_rank_; }
  // By rising site index.
  const std::vector<AppliedSite>& sites() const { return sites_; }
  // Activated LoRA: 1 to kMaxInvocationTokens ids of the vocabulary. The adapter belongs to the
  // rows from the first of them on, at the last place where they stand in the prompt together, and
  // to no row where they do not. Empty: it belongs to every row. Valid as long as the adapter.
  std::span<const int32_t> invocation_tokens() const { return invocation_tokens_; }
  // base_model_name_or_path of the config, unchecked; may be empty.
  const std::string& base_model() const { return base_model_; }

 private:
  friend class AdapterFolder;
  Adapter() = default;

  Buffer memory_;
  std::vector<LoraPair> pairs_;  // [SiteIndex::size()], into memory_
  std::vector<AppliedSite> sites_;
  Digest digest_{};
  int32_t max_rank_ = 0;
  std::vector<int32_t> invocation_tokens_;
  std::string base_model_;
};

// One of the folders that open_merged makes one adapter of.
struct MergePart {
  std::string folder;
  float weight = 1;
  std::string label;  // the name that messages use
};

class AdapterFolder {
 public:
  // Throws Error(not_found | bad_file | unsupported | over_capacity).
  static std::unique_ptr<AdapterFolder> open(const std::string& folder, AdapterTarget target,
                                             const AdapterLimits& limits);
  // The adapter that merging these gives (merge.h); it was made for the first one's base model.
  // max_bytes bounds the sum of the files, max_rank that of each merged linear. Throws as open, and
  // Error(invalid_argument | unsupported) for what cannot be merged.
  static std::unique_ptr<AdapterFolder> open_merged(std::span<const MergePart> parts,
                                                    const MergeSpec& spec, AdapterTarget target,
                                                    const AdapterLimits& limits);
  ~AdapterFolder();

  // Bytes that the Adapter will take.
  size_t packed_bytes() const { return packed_bytes_; }
  // Throws Error(bad_file) for values that are NaN or infinite, or a base copy that differs.
  // Called once.
  std::unique_ptr<Adapter> read();

 private:
  struct Files;
  AdapterFolder();
  void plan(const AdapterLimits& limits);
  void check_base_copies() const;
  Digest digest() const;

  std::unique_ptr<Files> files_;
  size_t packed_bytes_ = 0;
};

// open and read in one call.
std::unique_ptr<Adapter> load_adapter(const std::string& folder, const AdapterTarget& target,
                                      const AdapterLimits& limits = {});

}  // namespace lorry
