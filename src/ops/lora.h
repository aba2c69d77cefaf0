// What adapters and models agree on: where a LoRA pair can sit in a model (Site), what a loaded
// adapter offers a backend (AdapterView), and which rows of a batch use which adapter (LoraPlan).
// Plain data; the adapters library fills views, the models ask Ops to apply them.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "lorry/tensor.h"

namespace lorry {

// The linears of one layer that can carry a pair. A model that stores q, k and v as one matrix
// adapts `qkv`; one that stores them apart adapts q, k and v.
enum class SiteKind : uint8_t { q, k, v, qkv, o, router, gate, up, down, lm_head };

struct Site {
  SiteKind kind = SiteKind::q;
  int32_t layer = 0;
  int32_t expert = -1;  // gate, up, down only
  friend bool operator==(const Site&, const Site&) = default;
};

// Dense numbering of the sites of one model.
struct SiteIndex {
  int32_t layers = 0;
  int32_t experts = 0;

  int32_t per_layer() const { return 6 + 3 * experts; }
  int32_t size() const { return layers * per_layer() + 1; }
  // Requires: a site of this model.
  int32_t operator()(const Site& s) const {
    if (s.kind == SiteKind::lm_head) return layers * per_layer();
    const int32_t base = s.layer * per_layer();
    const auto kind = static_cast<int32_t>(s.kind);
    if (s.expert < 0) return base + kind;
    return base + 6 + (kind - static_cast<int32_t>(SiteKind::gate)) * experts + s.expert;
  }
};

// One place an adapter may touch, as the model's files name it.
struct SiteInfo {
  std::string module;  // PEFT's module path without "base_model.model.", e.g. "lm_head"
  Site site;
  int64_t in = 0, out = 0;
};

// A PEFT `target_parameters` tensor that covers all experts of a layer.
struct FusedParameter {
  std::string module;     // "model.layers.0.mlp.experts", "transformer.blocks.0.ffn.experts.mlp"
  std::string parameter;  // "gate_up_proj", "down_proj", "w1", "v1", "w2", "weight"
  enum class Form : uint8_t {
    stacked_gate_up,       // 3-d [E, 2I, H]: gate rows, then up rows
    stacked_down,          // 3-d [E, H, I]
    rows_gate,             // 2-d [E*F, H], expert-major rows, a Linear each
    rows_up,               // the same
    rows_down_transposed,  // 2-d [E*F, H], used untransposed: y = h · W_e
    plain,                 // 2-d, an ordinary Linear (the router)
  } form = Form::plain;
  int32_t order = 0;  // registration order within the module: 0 is nested innermost
  int32_t layer = 0;
  int64_t in = 0, out = 0;  // of one expert's Linear (stacked_gate_up: out of gate and up together)
};

// Everything that an adapter may legally name in one model.
struct SiteTable {
  SiteIndex index;
  std::vector<SiteInfo> sites;
  std::vector<FusedParameter> fused;
};

// One packed pair on the device; rank 0: the adapter leaves this site alone.
// A and B are in the backend's layout (Ops::pack_lora_a, pack_lora_b).
struct LoraPair {
  const std::byte* a = nullptr;
  const std::byte* b = nullptr;
  int32_t rank = 0;
  float scale = 0;
};

// An adapter as the backend reads it: a pair for each site of the SiteIndex.
struct AdapterView {
  std::span<const LoraPair> pairs;
};

// Rows [begin, end) of a batch (or of one expert's share of it) that use one adapter.
struct LoraSegment {
  int32_t begin = 0, end = 0;
  int32_t adapter = 0;  // index into LoraPlan::adapters
  int32_t group = 0;    // expert; 0 for dense linears
};

// Which adapter each row uses. Made once a step; valid as long as the step.
struct LoraPlan {
  std::span<const AdapterView> adapters;
  std::span<const int32_t> row_adapter;   // [T], -1: none
  std::span<const LoraSegment> segments;  // maximal runs of row_adapter, rows without one left out
};

// Where a linear's output takes a pair's result.
struct LoraSite {
  int32_t first = 0;          // site index of group 0
  int32_t group_stride = 0;   // site index step per group (1 for experts)
  int64_t in = 0, out = 0;    // of the pair
  int64_t column = 0;         // output column of the pair's first panel of 64 outputs
  int64_t panel_stride = 64;  // output columns from one panel to the next (gate and up: 128)
};

}  // namespace lorry
