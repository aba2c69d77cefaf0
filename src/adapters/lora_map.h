// LoraMap: where each tensor of a PEFT file goes in one model: which (strided) part of which tensor
// is the A or B of which site. It follows from names, shapes and the config alone; no weight is
// read. Pure functions, any thread.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "adapters/peft_config.h"
#include "ops/lora.h"
#include "weights/safetensors_header.h"

namespace lorry {

// One matrix to pack: element (i, j) is source[offset + i * row_stride + j * col_stride].
struct LoraPiece {
  int32_t tensor = 0;  // index into the tensors given to map_lora
  bool is_b = false;
  int64_t rows = 0, cols = 0;
  int64_t offset = 0, row_stride = 0, col_stride = 0;
  friend bool operator==(const LoraPiece&, const LoraPiece&) = default;
};

struct MappedPair {
  Site site;
  std::string module;    // as the file names it, with the parameter where target_parameters is used
  int32_t a = 0, b = 0;  // indices into LoraMap::pieces; experts may share one
  int32_t rank = 0;
  float scale = 0;
};

struct LoraMap {
  std::vector<LoraPiece> pieces;
  std::vector<MappedPair> pairs;  // by rising site index, each site at most once
  // "<module>.base_layer.weight": a copy of the base model's own weight, to be compared with it.
  struct BaseCopy {
    int32_t tensor = 0;
    std::string module;
  };
  std::vector<BaseCopy> base_copies;
};

// Throws Error(bad_file | unsupported) naming the first tensor that has no place, lacks its
// partner, has the wrong shape or needs something that Lorry does not do. `file` names the source.
LoraMap map_lora(const PeftConfig& config, const SiteTable& table,
                 std::span<const TensorInfo> tensors, const std::string& file);

}  // namespace lorry
