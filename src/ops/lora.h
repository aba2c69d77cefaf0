// What adapters and models agree on: the places of a model that an adapter may change (Site), what
// a loaded adapter does there (SitePatch, AdapterView), and which rows of a batch use which adapter
// (LoraPlan). Plain data; the adapters library fills views, the models ask Ops to apply them.
#pragma once
#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "lorry/tensor.h"

namespace lorry {

// Of each layer its linears and norms, then what a model has once. A model that stores q, k and v
// as one matrix adapts `qkv`; one that stores them apart adapts q, k and v.
enum class SiteKind : uint8_t {
  q,
  k,
  v,
  qkv,
  o,
  router,
  attn_norm,
  ffn_norm,
  gate,
  up,
  down,
  embed,
  final_norm,
  lm_head
};

constexpr bool is_norm(SiteKind k) {
  return k == SiteKind::attn_norm || k == SiteKind::ffn_norm || k == SiteKind::final_norm;
}
constexpr bool is_linear(SiteKind k) { return !is_norm(k) && k != SiteKind::embed; }
// Whether there is one of it in each layer.
constexpr bool in_layer(SiteKind k) { return k < SiteKind::embed; }

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

  int32_t per_layer() const { return 8 + 3 * experts; }
  int32_t size() const { return layers * per_layer() + 3; }
  // Requires: a site of this model.
  int32_t operator()(const Site& s) const {
    const auto kind = static_cast<int32_t>(s.kind);
    if (!in_layer(s.kind))
      return layers * per_layer() + kind - static_cast<int32_t>(SiteKind::embed);
    const int32_t base = s.layer * per_layer();
    if (s.expert < 0) return base + kind;
    return base + 8 + (kind - static_cast<int32_t>(SiteKind::gate)) * experts + s.expert;
  }
};

// [first, first + count).
struct Range {
  int64_t first = 0, count = 0;
  friend bool operator==(const Range&, const Range&) = default;
};

// The part of a site that one rank of a model has: its inputs, and its outputs, one range beside
// the other (three of them for q, k and v in one site). A count of 0: nothing of it.
struct SiteShare {
  Range in;
  std::vector<Range> out;

  int64_t n_out() const {
    int64_t n = 0;
    for (const Range& r : out) n += r.count;
    return n;
  }
  bool empty() const { return in.count == 0 || n_out() == 0; }
};

// One place an adapter may touch, as the model's files name it.
struct SiteInfo {
  std::string module;  // PEFT's module path without "base_model.model.", e.g. "lm_head"
  Site site;
  // Of a linear. The embedding: in = V, out = D, its matrix is stored [in, out]. A norm: in = 1,
  // out = D.
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
  bool tied_head = false;  // lm_head is the embedding: rows of it that are replaced are in both

  // The first of its names; null where the model has no such place. O(sites).
  const SiteInfo* find(const Site& site) const {
    const auto at =
        std::find_if(sites.begin(), sites.end(), [&](const SiteInfo& s) { return s.site == site; });
    return at == sites.end() ? nullptr : &*at;
  }
};

// What an adapter does at a site beside adding a pair. Most adapters do nothing of it.
struct SiteChange {
  // Takes the place of the base matrix: of a linear as Ops::pack_matrix packs it; of the embedding
  // act [V, D]; of a norm f32 [D].
  const std::byte* weight = nullptr;
  // One factor per output, f32 [round_up(out, 64)]; the last, as y = gain * (W x + scale B A x).
  const float* gain = nullptr;
  // Single outputs that take the place of all that (of the embedding: rows): ids ascending, the new
  // rows in their order, of lm_head packed by Ops::pack_matrix, of the embedding act [n, D].
  const int32_t* tokens = nullptr;
  const std::byte* token_rows = nullptr;
  int32_t n_tokens = 0;
};

// What an adapter does at one site: y = W x + scale * B (A x), W the base matrix, and more where
// there is a change. A neutral patch leaves the site alone; a norm's has no pair.
// A and B of a linear are in the backend's layout (Ops::pack_lora_a, pack_lora_b); of the embedding
// A is act [V, rank] (transposed: a row for each token) and B as of a linear.
struct SitePatch {
  const std::byte* a = nullptr;
  const std::byte* b = nullptr;
  int32_t rank = 0;  // 0: no pair
  float scale = 0;
  const SiteChange* change = nullptr;

  bool neutral() const { return rank == 0 && change == nullptr; }
  bool operator==(const SitePatch&) const = default;
};

// Heads that guess tokens further ahead (ops/medusa.h); they change no result.
struct MedusaShape {
  int32_t heads = 0;        // 0: none
  int32_t blocks = 0;       // of each head
  bool own_output = false;  // each head has an output matrix, else the model's output layer serves
  int64_t dim = 0, vocab = 0;
};
struct MedusaView {
  const std::byte* data = nullptr;  // as MedusaLayout says
  MedusaShape shape;
};

// An adapter as the backend reads it: a patch for each site of the SiteIndex.
struct AdapterView {
  std::span<const SitePatch> patches;
  bool norms = false;  // some norm has a patch
  MedusaView medusa = {};
  int32_t content = -1;  // a number of the owner's, by which other ranks know the adapter
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
  bool norms = false;                     // one of the adapters has a patch for a norm

  const SitePatch& patch(const LoraSegment& segment, int32_t site) const {
    return adapters[static_cast<size_t>(segment.adapter)].patches[static_cast<size_t>(site)];
  }
};

// Where a linear's output takes a site's result.
struct LoraSite {
  int32_t first = 0;          // site index of group 0
  int32_t group_stride = 0;   // site index step per group (1 for experts)
  int32_t groups = 1;         // of the linear
  int64_t in = 0, out = 0;    // of the site
  int64_t column = 0;         // output column of the site's first panel of 64 outputs
  int64_t panel_stride = 64;  // output columns from one panel to the next (gate and up: 128)

  int32_t index(int32_t group) const { return first + group_stride * group; }
  // Output column of output `o`.
  int64_t column_of(int64_t o) const { return column + o / 64 * panel_stride + o % 64; }
};

}  // namespace lorry
