// What map_lora builds: patches by site, the pieces they share, and faults that name a tensor.
#pragma once
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "adapters/fused_parameter.h"
#include "adapters/lora_map.h"
#include "base/error.h"

namespace lorry {

// The tensors of one file, by index.
struct TensorList {
  std::span<const TensorInfo> tensors;
  const std::string& file;

  const TensorInfo& header(int32_t i) const { return tensors[static_cast<size_t>(i)]; }
  // Throws Error(code): file, tensor, `what`.
  [[noreturn]] void bad(int32_t i, const std::string& what, Code code = Code::bad_file) const;
  // Throws Error(bad_file) unless tensor i has this shape; `why` follows it in the sentence.
  void expect(int32_t i, const Shape& shape, const std::string& why = {}) const;
};

class PatchTable {
 public:
  PatchTable(const TensorList& list, const SiteIndex& index) : list_(list), index_(index) {}

  // The index of a piece; patches that read the same one share it.
  int32_t piece(const LoraPiece& p);
  const LoraPiece& piece_at(int32_t i) const { return pieces_[static_cast<size_t>(i)]; }
  // The patch of a site, made where there is none; `module` is its name then.
  MappedPatch& at(const Site& site, const std::string& module);
  // Null where the file does nothing.
  const MappedPatch* find(const Site& site) const;

  // Throw Error(bad_file) where the site has a pair, or a weight, already.
  MappedPatch& add_pair(const SitePieces& p, const std::string& module, int32_t rank, float scale);
  void add_weight(const Site& site, const LoraPiece& weight, const std::string& module);

  // By rising site index.
  const std::map<int32_t, MappedPatch>& patches() const { return patches_; }
  LoraMap take();

 private:
  void check_once(int32_t there, int32_t tensor, const char* what) const;

  const TensorList& list_;
  const SiteIndex index_;
  std::vector<LoraPiece> pieces_;
  std::map<int32_t, MappedPatch> patches_;
  std::unordered_map<int32_t, std::vector<int32_t>> by_tensor_;
};

}  // namespace lorry
