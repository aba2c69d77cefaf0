#include "models/share.h"

#include <algorithm>

#include "base/error.h"

namespace lorry {

namespace {

Range times(const Range& r, int64_t n) { return {r.first * n, r.count * n}; }
Range moved(const Range& r, int64_t by) { return {r.first + by, r.count}; }

// q, k and v of a fused matrix, as a rank has them.
std::vector<Range> qkv_rows(const Spec& s, const Placement& p) {
  const int64_t d = s.attention.head_dim;
  const Range kv = times(p.kv_heads, d);
  return {times(p.heads, d), moved(kv, s.q_dim()), moved(kv, s.q_dim() + s.kv_dim())};
}

// Outputs [r.first, r.first + r.count) of what the slice holds.
Slice outputs_of(Slice s, const Range& r) {
  if (s.transposed) {
    s.columns = r;
  } else {
    s.first += r.first;
    s.count = r.count;
  }
  return s;
}

Slice inputs_of(Slice s, const Range& r) {
  s.inputs = r;
  return s;
}

// The rows `wanted` of slices that lie one below the other.
std::vector<Slice> rows_of(const std::vector<Slice>& stacked, const std::vector<Range>& wanted) {
  std::vector<Slice> parts;
  for (const Range& w : wanted) {
    int64_t begin = 0;
    for (const Slice& s : stacked) {
      const int64_t end = begin + s.outputs();
      const int64_t from = std::max(begin, w.first);
      const int64_t to = std::min(end, w.first + w.count);
      if (from < to) parts.push_back(outputs_of(s, {from - begin, to - from}));
      begin = end;
    }
  }
  return parts;
}

}  // namespace

ModelShape shape_of(const Spec& s) {
  const int32_t group = s.formats.linears.group;
  return {s.attention.heads, s.attention.kv_heads, s.ffn, s.experts, s.vocab, std::max(1, group)};
}

ModelShare::ModelShare(const Spec& spec) : ModelShare(spec, place(shape_of(spec), 1, false)[0]) {}

ModelShare::ModelShare(const Spec& spec, const Placement& p)
    : whole(spec), own(spec), placement(p) {
  own.attention.heads = static_cast<int32_t>(p.heads.count);
  own.attention.kv_heads = static_cast<int32_t>(p.kv_heads.count);
  own.ffn = static_cast<int32_t>(p.ffn.count);
  own.vocab = static_cast<int32_t>(p.vocab.count);
}

LayerSlices own_slices(const LayerSlices& all, const ModelShare& share) {
  if (share.is_whole()) return all;
  const Placement& p = share.placement;
  LayerSlices l = all;
  l.qkv = rows_of(all.qkv, qkv_rows(share.whole, p));
  l.o = inputs_of(all.o, times(p.heads, share.whole.attention.head_dim));
  l.experts.clear();
  for (int64_t e = p.experts.first; e < p.experts.first + p.experts.count; ++e) {
    const ExpertSlices& x = all.experts[static_cast<size_t>(e)];
    l.experts.push_back(
        {outputs_of(x.gate, p.ffn), outputs_of(x.up, p.ffn), inputs_of(x.down, p.ffn)});
  }
  return l;
}

ModelSlices own_slices(const ModelSlices& all, const ModelShare& share) {
  if (share.is_whole()) return all;
  const Range& vocab = share.placement.vocab;
  return {outputs_of(all.embed, vocab), all.final_norm, outputs_of(all.head, vocab)};
}

SiteShare share_of(const Site& site, const Spec& s, const Placement& p) {
  const int64_t d = s.attention.head_dim;
  const Range dim{0, s.dim};
  const bool has_expert =
      site.expert >= p.experts.first && site.expert < p.experts.first + p.experts.count;
  const Range ffn = has_expert ? p.ffn : Range{};
  switch (site.kind) {
    case SiteKind::q:
      return {dim, {times(p.heads, d)}};
    case SiteKind::k:
    case SiteKind::v:
      return {dim, {times(p.kv_heads, d)}};
    case SiteKind::qkv:
      return {dim, qkv_rows(s, p)};
    case SiteKind::o:
      return {times(p.heads, d), {dim}};
    case SiteKind::router:
      return {dim, {{0, s.experts}}};
    case SiteKind::gate:
    case SiteKind::up:
      return {dim, {ffn}};
    case SiteKind::down:
      return {ffn, {dim}};
    case SiteKind::embed:
      return {p.vocab, {dim}};
    case SiteKind::lm_head:
      return {dim, {p.vocab}};
    case SiteKind::attn_norm:
    case SiteKind::ffn_norm:
    case SiteKind::final_norm:
      break;
  }
  return {{0, 1}, {dim}};
}

}  // namespace lorry
