#include "models/base_rows.h"

#include <algorithm>
#include <vector>

#include "base/error.h"
#include "models/device_copy.h"
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

// The tensors that hold the rows of a site, in their order.
std::vector<Slice> slices_of(const StoredModel& model, const Site& site) {
  if (!in_layer(site.kind)) {
    const ModelSlices m = model.architecture.model(model.spec);
    return {site.kind == SiteKind::embed        ? m.embed
            : site.kind == SiteKind::final_norm ? m.final_norm
                                                : m.head};
  }
  const auto has = [&](std::string_view name) { return model.source.has(name); };
  const LayerSlices l = model.architecture.layer(model.spec, site.layer, has);
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
      return {l.qkv[static_cast<size_t>(site.kind)]};
  }
}

void read_rows(Tensor y, const StoredModel& model, const Slice& s, Dtype rounded, int64_t first) {
  const Tensor t = model.source.tensor(s.name, s.shape);
  const int64_t cols = s.shape[-1];
  const Tensor part = rows(view(t.data, t.dtype, {t.shape.size() / cols, cols}), s.first, s.count);
  // What is stored quantised is computed with as it is.
  if (model.source.quantised(s.name)) rounded = Dtype::f32;
  std::vector<std::byte> memory(static_cast<size_t>(y.shape.size() * size_of(rounded)));
  const Tensor own = view(memory.data(), rounded, y.shape);
  if (s.transposed) {
    copy_transposed(own, columns(part, first, y.rows()));
  } else {
    copy(own, rows(part, first, y.rows()));
  }
  copy(y, own);
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
  const Dtype rounded = is_norm(site.kind) ? Dtype::f32 : model.act;
  int64_t begin = 0;
  for (const Slice& s : slices_of(model, site)) {
    const int64_t end = begin + (s.transposed ? s.shape[-1] : s.count);
    const int64_t from = std::max(first, begin);
    const int64_t to = std::min(first + y.rows(), end);
    if (from < to) read_rows(rows(y, from - first, to - from), model, s, rounded, from - begin);
    begin = end;
  }
}

}  // namespace lorry
