// Adapter: a LoRA adapter, Medusa heads (medusa.h) or both in memory, packed for one backend and
// ready to be applied.
// AdapterFolder: a PEFT folder, or several to be merged, checked against a model, whose size is
// known before its weights are kept. Loading is: open (checks, plan), then read (weights).
// Everything in the folders is applied exactly or loading fails with a sentence that names the
// field or tensor. Distinct objects may be used by distinct threads. An Adapter is immutable but
// for rebase(): all that a backend reads is one block of memory, its image, which may be moved.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "adapters/checked_folder.h"
#include "adapters/merge.h"
#include "adapters/target.h"
#include "base/memory.h"
#include "base/sha256.h"
#include "ops/lora.h"

namespace lorry {

// What an adapter does at one site.
struct AppliedSite {
  Site site;
  std::string module;  // with the parameter's name where target_parameters is used
  int32_t rank = 0;    // 0: no pair
  float scale = 0;
  bool dora = false;
  bool replaced = false;   // another weight in place of the base model's
  int32_t token_rows = 0;  // single rows replaced
};

class Adapter {
 public:
  // Points into the image: valid while that stays where rebase() last said it is.
  AdapterView view() const { return {patches_, norms_, medusa_}; }
  // The image now lies at `to`: its bytes were copied there, by whatever means.
  void rebase(std::byte* to);
  // SHA-256 over what is applied where and the tensors as stored: equal digests, equal adapters.
  const Digest& digest() const { return digest_; }
  size_t bytes() const { return bytes_; }  // of the image
  int32_t max_rank() const { return max_rank_; }
  const MedusaShape& medusa() const { return medusa_.shape; }
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

  Buffer own_;  // the image, unless it was packed into memory of somebody else
  std::byte* image_ = nullptr;
  size_t bytes_ = 0;
  std::vector<SitePatch> patches_;   // [SiteIndex::size()], into the image and changes_
  std::vector<SiteChange> changes_;  // into the image
  bool norms_ = false;
  MedusaView medusa_;  // into the image
  std::vector<AppliedSite> sites_;
  Digest digest_{};
  int32_t max_rank_ = 0;
  std::vector<int32_t> invocation_tokens_;
  std::string base_model_;
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

  // Bytes of the Adapter's image; with several ranks, of the largest one.
  size_t packed_bytes() const { return packed_bytes_; }
  // Packs the image into `memory`, which has packed_bytes() and is 64-byte aligned.
  // Throws Error(bad_file) for values that are NaN or infinite. Called once.
  std::unique_ptr<Adapter> read(std::byte* memory);
  // The same into memory of the backend's device: it is packed beside it and copied.
  std::unique_ptr<Adapter> read_to_device(std::byte* memory);
  // The same into memory of the Adapter's own, where the backend reads it.
  std::unique_ptr<Adapter> read();

 private:
  struct Files;
  AdapterFolder();
  static std::unique_ptr<AdapterFolder> make(CheckedFolder from, AdapterTarget target,
                                             const AdapterLimits& limits);
  void plan(const AdapterLimits& limits);
  size_t plan_rank(int rank, const AdapterLimits& limits);
  void pack(std::byte* memory) const;
  void pack_gain(std::byte* to, const MappedPatch& patch) const;
  void point(Adapter& adapter, std::byte* memory) const;
  Digest digest() const;

  std::unique_ptr<Files> files_;
  size_t packed_bytes_ = 0;
};

// open and read in one call, into memory of the Adapter's own.
std::unique_ptr<Adapter> load_adapter(const std::string& folder, const AdapterTarget& target,
                                      const AdapterLimits& limits = {});

}  // namespace lorry
