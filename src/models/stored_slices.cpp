#include "models/stored_slices.h"

#include <algorithm>

#include "base/error.h"
#include "weights/slice.h"

namespace lorry {

namespace {

// Plain where the kernels have no such format: fp8 in blocks is widened.
WeightFormat format_of(const QuantScheme& scheme) {
  if (scheme.kind == QuantScheme::Kind::fp8 && scheme.group != 0) return {};
  WeightFormat format = weight_format({scheme.kind, scheme.group});
  format.zeros = scheme.zeros;
  return format;
}

// A Linear that the source keeps quantised, or a part of one whose scales are its own.
bool quantised(const TensorSource& source, const Slice& s) {
  if (s.shape.rank != 2 || s.transposed || !source.quantised(s.name)) return false;
  const QuantScheme scheme = source.scheme();
  return s.inputs.count == 0 || (!scheme.act_order && has_whole_scales(s, scheme.group));
}

// Whether parts that read the same x want its values in the same order.
bool same_order(TensorSource& source, std::span<const Slice> parts) {
  const auto order = source.order(parts.front().name, parts.front().shape[-1]);
  return std::all_of(parts.begin() + 1, parts.end(),
                     [&](const Slice& s) { return source.order(s.name, s.shape[-1]) == order; });
}

// Rows of an expert's matrix.
Slice expert_rows(int32_t layer, std::string_view what, const Shape& shape, int64_t first,
                  int64_t count) {
  return {piece_name(layer, what), shape, first, count};
}

}  // namespace

bool has_whole_scales(const Slice& s, int64_t group) {
  if (s.inputs.count == 0 || group == 0) return true;
  const int64_t end = s.inputs.first + s.inputs.count;
  return s.inputs.first % group == 0 && (end % group == 0 || end == s.all_inputs());
}

std::string piece_name(int32_t layer, std::string_view what) {
  return fmt::format("layers.{}.{}", layer, what);
}

ModelSlices model_slices(const Architecture& architecture, const Spec& s,
                         const TensorSource& source) {
  ModelSlices m = architecture.model(s);
  if (source.packed() == nullptr) return m;
  m.embed.name = "embed";
  m.final_norm.name = "final_norm";
  m.head.name = s.tied_head && s.formats.head.plain() ? "embed" : "lm_head";
  return m;
}

LayerSlices layer_slices(const Architecture& architecture, const Spec& s,
                         const TensorSource& source, int32_t i) {
  LayerSlices l = architecture.layer(s, i, [&](std::string_view name) { return source.has(name); });
  if (source.packed() == nullptr) return l;
  l.attn_norm.name = piece_name(i, "attn_norm");
  l.ffn_norm.name = piece_name(i, "ffn_norm");
  l.router.name = piece_name(i, "router");
  l.qkv = {whole(piece_name(i, "qkv"), s.qkv_dim(), s.dim)};
  l.o = whole(piece_name(i, "o"), s.dim, s.q_dim());
  const int64_t f = s.ffn;
  const Shape gate_up{s.experts, 2 * f, s.dim};
  const Shape down{s.experts, s.dim, f};
  for (int64_t e = 0; e < s.experts; ++e) {
    l.experts[static_cast<size_t>(e)] = {expert_rows(i, "gate_up", gate_up, 2 * e * f, f),
                                         expert_rows(i, "gate_up", gate_up, (2 * e + 1) * f, f),
                                         expert_rows(i, "down", down, e * s.dim, s.dim)};
  }
  return l;
}

std::vector<Slice> gates_and_ups(const LayerSlices& l) {
  std::vector<Slice> parts;
  for (const ExpertSlices& e : l.experts) parts.insert(parts.end(), {e.gate, e.up});
  return parts;
}
std::vector<Slice> downs(const LayerSlices& l) {
  std::vector<Slice> parts;
  for (const ExpertSlices& e : l.experts) parts.push_back(e.down);
  return parts;
}

WeightFormat format_of(TensorSource& source, std::span<const Slice> parts, size_t per_group,
                       WeightFormat wanted) {
  const QuantScheme scheme = source.scheme();
  if (scheme.kind == QuantScheme::Kind::none) {
    const bool can_keep = std::all_of(parts.begin(), parts.end(), [&](const Slice& s) {
      return has_whole_scales(s, wanted.group);
    });
    return can_keep ? wanted : WeightFormat{};
  }
  const auto whole = [&](const Slice& s) { return quantised(source, s); };
  if (!std::all_of(parts.begin(), parts.end(), whole)) return {};
  for (size_t i = 0; scheme.act_order && i < parts.size(); i += per_group) {
    if (!same_order(source, parts.subspan(i, per_group))) return {};
  }
  return format_of(scheme);
}

PackedRows packed_rows(TensorSource& source, const Ops& ops, const Slice& s) {
  const PackedFile* file = source.packed();
  const PackedPiece* piece = file->find(s.name);
  if (piece == nullptr || piece->format == PackedFormat{}) return {};
  const bool experts = s.shape.rank == 3;
  const bool interleaved = s.name.ends_with("gate_up");
  const int64_t outputs = s.shape[experts ? 1 : 0];
  const int64_t width = interleaved ? outputs / 2 : outputs;
  PackedRows rows;
  rows.from =
      ops.weight_layout(experts ? s.shape[0] : 1, interleaved ? gate_up_dim(width) : outputs,
                        s.shape[-1], weight_format(piece->format));
  rows.from.data = file->data(source.piece(s.name, rows.from));
  rows.group = s.first / outputs;
  rows.first = s.first % width;
  rows.n = s.count;
  rows.input = s.inputs.first;
  if (interleaved) {
    rows.column = s.first / width % 2 * kPanel;
    rows.panel_stride = 2 * kPanel;
  }
  return rows;
}

void unpack_rows(Tensor y, const Ops& ops, const PackedRows& packed) {
  std::vector<float> memory(static_cast<size_t>(kPanel * packed.from.in));
  for (int64_t done = 0; done < packed.n;) {
    const int64_t n = packed.side_by_side(done);
    const Tensor whole = view(memory.data(), Dtype::f32, {n, packed.from.in});
    ops.unpack(whole, packed.from, packed.group, packed.column_of(packed.first + done));
    copy(rows(y, done, n), columns(whole, packed.input, y.cols()));
    done += n;
  }
}

}  // namespace lorry
