// LoraMap: where each tensor of a PEFT file goes in one model: which (strided) part of which tensor
// is the A, the B, the magnitude or the whole weight of which site. It follows from names, shapes
// and the config alone; no weight is read. Pure functions, any thread.
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
  enum class Form : uint8_t {
    lora_a,  // [rank, in], by Ops::pack_lora_a
    lora_b,  // [out, rank], by Ops::pack_lora_b
    matrix,  // [out, in], by Ops::pack_matrix
    table,   // rows of act, dense
    vector,  // [1, n] f32
  };
  int32_t tensor = 0;  // index into the tensors given to map_lora
  Form form = Form::lora_a;
  int64_t rows = 0, cols = 0;
  int64_t offset = 0, row_stride = 0, col_stride = 0;
  // With several ranks, where a rank's rows are not side by side: which of the tensor's they are,
  // `rows` in all.
  std::vector<Range> row_ranges = {};
  friend bool operator==(const LoraPiece&, const LoraPiece&) = default;
};

// What the file does at one site. Indices into LoraMap::pieces are -1 where there is none.
struct MappedPatch {
  Site site;
  std::string module;       // as the file names it, with the parameter for target_parameters
  int64_t in = 0, out = 0;  // as in SiteInfo; of one expert where the file's tensor has all
  int32_t a = -1, b = -1;   // pieces; experts may share one
  int32_t rank = 0;         // 0: no pair
  float scale = 0;
  int32_t magnitude = -1;   // tensor [out] of DoRA, or -1
  int32_t weight = -1;      // piece: the whole weight
  int32_t token_rows = -1;  // piece: a row for each of `tokens`, in their order
  std::vector<int32_t> tokens = {};
};

struct LoraMap {
  std::vector<LoraPiece> pieces;
  std::vector<MappedPatch> patches;  // by rising site index, each site at most once
};

// Throws Error(bad_file | unsupported) naming the first tensor that has no place, lacks its
// partner, has the wrong shape or needs something that Lorry does not do, or the field of the
// config that promises what the file does not hold. `file` names the source.
LoraMap map_lora(const PeftConfig& config, const SiteTable& table,
                 std::span<const TensorInfo> tensors, const std::string& file);

}  // namespace lorry
