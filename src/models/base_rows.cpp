#include "models/base_rows.h"

#include <algorithm>
#include <vector>

#include "base/error.h"
#include "models/device_copy.h"
#include "models/stored_slices.h"
#include "weights/slice.h"

namespace lorry {

namespace {

const Linear& linear_of(const ModelWeights& w, const Site& site) {
  if (site.kind == SiteKind::lm_head) return w.head;
  const DecoderLayer& l = w.layers[static_cast<size_t>(site.layer)];
  switch (site.kind) {
    case SiteKind::o:
      return l.wo;
    case SiteKind::router:
      return l.router;
    case SiteKind::gate:
    case SiteKind::up:
      return l.gate_up;
    case SiteKind::down:
      return l.down;
    default:
      return l.wqkv;
  }
}

const SiteNorm& norm_of(const ModelWeights& w, const Site& site) {
  if (site.kind == SiteKind::final_norm) return w.final_norm;
  const DecoderLayer& l = w.layers[static_cast<size_t>(site.layer)];
  return site.kind == SiteKind::attn_norm ? l.attn_norm : l.ffn_norm;
}

// q, k or v of one matrix of all three.
std::vector<Slice> part_of_qkv(Slice s, const Spec& spec, SiteKind kind) {
  if (kind != SiteKind::q) s.first = spec.q_dim() + (kind == SiteKind::v ? spec.kv_dim() : 0);
  s.count = kind == SiteKind::q ? spec.q_dim() : spec.kv_dim();
  return {s};
}

// The tensors that hold the rows of a site, in their order.
std::vector<Slice> slices_of(const StoredModel& model, const Site& site) {
  if (!in_layer(site.kind)) {
    const ModelSlices m = model_slices(model.architecture, model.spec, model.source);
    return {site.kind == SiteKind::embed        ? m.embed
            : site.kind == SiteKind::final_norm ? m.final_norm
                                                : m.head};
  }
  const LayerSlices l = layer_slices(model.architecture, model.spec, model.source, site.layer);
  switch (site.kind) {
    case SiteKind::attn_norm:
      return {l.attn_norm};
    case SiteKind::ffn_norm:
      return {l.ffn_norm};
    case SiteKind::o:
      return {l.o};
    case SiteKind::router:
      return {l.router};
    case SiteKind::gate:
      return {l.experts[static_cast<size_t>(site.expert)].gate};
    case SiteKind::up:
      return {l.experts[static_cast<size_t>(site.expert)].up};
    case SiteKind::down:
      return {l.experts[static_cast<size_t>(site.expert)].down};
    case SiteKind::qkv:
      return l.qkv;
    default:  // q, k, v in their order
      if (l.qkv.size() == 1) return part_of_qkv(l.qkv[0], model.spec, site.kind);
      return {l.qkv[static_cast<size_t>(site.kind)]};
  }
}

// How the rows of a site will be stored.
WeightFormat format_of(const Spec& spec, SiteKind kind) {
  if (kind == SiteKind::lm_head) return spec.formats.head;
  const bool quantised = is_linear(kind) && kind != SiteKind::router;
  return quantised ? spec.formats.linears : WeightFormat{};
}

// y <- the rows as `format` rounds them.
void quantise(Tensor y, const Ops& ops, WeightFormat format) {
  Weight w = ops.weight_layout(1, y.rows(), y.cols(), format);
  std::vector<std::byte> memory(static_cast<size_t>(w.group_bytes));
  w.data = memory.data();
  ops.pack_matrix(w.data, y, format);
  ops.unpack(y, w, 0, 0);
}

// `format`: of what is not quantised in the source.
void read_rows(Tensor y, const StoredModel& model, const Slice& s, Dtype rounded, int64_t first,
               WeightFormat format) {
  if (model.source.packed() != nullptr) {
    Slice part = s;
    part.first += first;
    part.count = y.rows();
    const PackedRows packed = packed_rows(model.source, model.ops, part);
    if (packed.from.data != nullptr) return unpack_rows(y, model.ops, packed);
  }
  const Tensor t = model.source.tensor(s.name, s.shape);
  const int64_t cols = s.shape[-1];
  const Tensor part = rows(view(t.data, t.dtype, {t.shape.size() / cols, cols}), s.first, s.count);
  // What is stored quantised is computed with as it is, and other values are quantised as they are.
  const bool quantised = model.source.quantised(s.name);
  if (quantised || !format.plain()) rounded = Dtype::f32;
  std::vector<std::byte> memory(static_cast<size_t>(y.shape.size() * size_of(rounded)));
  const Tensor own = view(memory.data(), rounded, y.shape);
  if (s.transposed) {
    copy_transposed(own, columns(part, first, y.rows()));
  } else {
    copy(own, rows(part, first, y.rows()));
  }
  copy(y, own);
  if (!quantised && !format.plain()) quantise(y, model.ops, format);
}

}  // namespace

void base_rows(Tensor y, const ModelWeights& weights, const SiteIndex& index, const Ops& ops,
               const Site& site, int64_t first) {
  if (site.kind == SiteKind::embed) {
    return get_tensor(ops.memory(), y, rows(weights.embed, first, y.rows()));
  }
  if (is_norm(site.kind)) {
    return get_tensor(ops.memory(), y, norm_of(weights, site).norm.weight);
  }
  const Linear& linear = linear_of(weights, site);
  const int32_t group = std::max(0, site.expert);
  const auto place = std::find_if(linear.sites.begin(), linear.sites.end(),
                                  [&](const LoraSite& s) { return s.index(group) == index(site); });
  LORRY_CHECK(place != linear.sites.end(), "site {} is not of its linear", index(site));
  for (int64_t done = 0; done < y.rows();) {
    // As far as the outputs lie side by side.
    const int64_t o = first + done;
    const int64_t n = std::min(y.rows() - done, kPanel - o % kPanel);
    ops.unpack(rows(y, done, n), linear.w, group, place->column_of(o));
    done += n;
  }
}

void stored_rows(Tensor y, const StoredModel& model, const Site& site, int64_t first) {
  const Dtype rounded = is_norm(site.kind) ? Dtype::f32 : model.ops.act();
  const bool stored = model.source.scheme().kind != QuantScheme::Kind::none;
  const WeightFormat format = stored ? WeightFormat{} : format_of(model.spec, site.kind);
  int64_t begin = 0;
  for (const Slice& s : slices_of(model, site)) {
    const int64_t end = begin + (s.transposed ? s.shape[-1] : s.count);
    const int64_t from = std::max(first, begin);
    const int64_t to = std::min(first + y.rows(), end);
    if (from < to)
      read_rows(rows(y, from - first, to - from), model, s, rounded, from - begin, format);
    begin = end;
  }
}

}  // namespace lorry
