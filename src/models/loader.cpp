#include "models/loader.h"

#include <algorithm>
#include <array>
#include <numeric>
#include <span>
#include <utility>

#include "base/error.h"
#include "weights/slice.h"

namespace lorry {

namespace {

WeightFormat::Kind kind_of(QuantScheme::Kind kind) {
  switch (kind) {
    case QuantScheme::Kind::int8:
      return WeightFormat::Kind::int8;
    case QuantScheme::Kind::int4:
      return WeightFormat::Kind::int4;
    case QuantScheme::Kind::fp8:
      return WeightFormat::Kind::fp8;
    case QuantScheme::Kind::none:
      break;
  }
  return WeightFormat::Kind::plain;
}

// Plain where the kernels have no such format: fp8 in blocks is widened.
WeightFormat format_of(const QuantScheme& scheme) {
  if (scheme.kind == QuantScheme::Kind::fp8 && scheme.group != 0) return {};
  return {kind_of(scheme.kind), scheme.group, scheme.zeros};
}

// A Linear that the source keeps quantised, or a part of one whose scales are its own.
bool quantised(const TensorSource& source, const Slice& s) {
  if (s.shape.rank != 2 || s.transposed || !source.quantised(s.name)) return false;
  if (s.columns.count == 0) return true;
  const QuantScheme scheme = source.scheme();
  if (scheme.act_order) return false;
  const int64_t end = s.columns.first + s.columns.count;
  return scheme.group == 0 ||
         (s.columns.first % scheme.group == 0 && (end % scheme.group == 0 || end == s.shape[1]));
}

// Whether parts that read the same x want its values in the same order.
bool same_order(TensorSource& source, std::span<const Slice> parts) {
  const auto order = source.order(parts.front().name, parts.front().shape[-1]);
  return std::all_of(parts.begin() + 1, parts.end(),
                     [&](const Slice& s) { return source.order(s.name, s.shape[-1]) == order; });
}

// How a linear is stored: groups of `per_group` parts one below the other. `wanted` is for plain
// ones. Plain is what cannot be kept as it is: parts of which some are not quantised, or that have
// different orders.
WeightFormat format_of(TensorSource& source, std::span<const Slice> parts, size_t per_group,
                       WeightFormat wanted) {
  const QuantScheme scheme = source.scheme();
  if (scheme.kind == QuantScheme::Kind::none) return wanted;
  const auto whole = [&](const Slice& s) { return quantised(source, s); };
  if (!std::all_of(parts.begin(), parts.end(), whole)) return {};
  for (size_t i = 0; scheme.act_order && i < parts.size(); i += per_group) {
    if (!same_order(source, parts.subspan(i, per_group))) return {};
  }
  return format_of(scheme);
}

// All experts of a layer are stored alike.
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

// Rows of a linear that come from one slice: from row `first` on, or every other panel from there.
struct Part {
  const Slice& slice;
  int64_t first = 0;
  bool interleaved = false;
};

// Allocates one Buffer per matrix family and packs into it.
class Loader {
 public:
  Loader(const ModelShare& share, TensorSource& source, Ops& ops)
      : spec_(share.own), experts_(share.placement.experts), source_(source), ops_(ops) {}

  ModelWeights take() { return std::move(out_); }

  void model(const ModelSlices& m) {
    out_.embed = table(m.embed);
    out_.embed_site = site(SiteKind::embed, 0, spec_.vocab, spec_.dim);
    out_.final_norm = norm(m.final_norm, SiteKind::final_norm, 0);
    out_.head = dense({m.head}, spec_.vocab, spec_.dim, spec_.formats.head);
    out_.head.sites = {site(SiteKind::lm_head, 0, spec_.dim, spec_.vocab)};
  }

  void layer(const LayerSlices& l, int32_t i) {
    DecoderLayer d;
    d.attn_norm = norm(l.attn_norm, SiteKind::attn_norm, i);
    d.ffn_norm = norm(l.ffn_norm, SiteKind::ffn_norm, i);
    if (spec_.attention.heads > 0) {
      d.wqkv = dense(l.qkv, spec_.qkv_dim(), spec_.dim, spec_.formats.linears);
      d.wqkv.sites = qkv_sites(i);
      d.wo = dense({l.o}, spec_.dim, spec_.q_dim(), spec_.formats.linears);
      d.wo.sites = {site(SiteKind::o, i, spec_.q_dim(), spec_.dim)};
    }
    d.router = dense({l.router}, spec_.experts, spec_.dim, {});
    d.router.sites = {site(SiteKind::router, i, spec_.dim, spec_.experts)};
    experts(d, l, i);
    out_.layers.push_back(std::move(d));
  }

 private:
  std::byte* allocate(size_t bytes) {
    out_.storage.emplace_back(bytes);
    out_.bytes += bytes;
    return out_.storage.back().data();
  }

  Weight weight(int64_t groups, int64_t out, int64_t in, WeightFormat format) {
    Weight w = ops_.weight_layout(groups, out, in, format);
    w.data = allocate(static_cast<size_t>(w.groups * w.group_bytes));
    return w;
  }

  // The rows of a slice as a matrix; transposed ones are turned in scratch_.
  Tensor matrix(const Slice& s) {
    const Tensor t = source_.tensor(s.name, s.shape);
    const int64_t cols = s.shape[-1];
    Tensor m = view(t.data, t.dtype, {t.shape.size() / cols, cols});
    m = rows(m, s.first, s.count);
    if (s.columns.count > 0) m = columns(m, s.columns.first, s.columns.count);
    if (!s.transposed) return m;
    scratch_.resize(static_cast<size_t>(m.rows() * m.cols() * size_of(t.dtype)));
    const Tensor turned = view(scratch_.data(), t.dtype, {m.cols(), m.rows()});
    copy_transposed(turned, m);
    return turned;
  }

  Linear dense(const std::vector<Slice>& slices, int64_t out, int64_t in, WeightFormat wanted) {
    Linear l{weight(1, out, in, format_of(source_, slices, slices.size(), wanted)), {}};
    std::vector<Part> parts;
    int64_t row = 0;
    for (const Slice& s : slices) {
      parts.push_back({s, row});
      row += s.outputs();
    }
    LORRY_CHECK(row == out, "{} rows of {}", row, out);
    pack(l.w, 0, parts);
    return l;
  }

  void pack(Weight& w, int64_t group, std::span<const Part> parts) {
    const bool kept = !w.format.plain() && source_.scheme().kind != QuantScheme::Kind::none;
    if (kept) return pack_quantised(w, group, parts);
    for (const Part& p : parts) {
      const Tensor m = matrix(p.slice);
      if (source_.quantised(p.slice.name)) ++out_.widened;
      place(p, m.shape[0], [&](int64_t first, int64_t row, int64_t n) {
        ops_.pack(w, group, first, rows(m, row, n));
      });
    }
  }

  void pack_quantised(Weight& w, int64_t group, std::span<const Part> parts) {
    for (const Part& p : parts) {
      const Slice& s = p.slice;
      const QuantMatrix m = source_.matrix(s.name, s.shape[0], s.shape[1]);
      if (m.order) set_order(w, group, m.order);
      // Of the scales: all where they are of whole rows.
      const int64_t first_scale = m.group == 0 ? 0 : s.columns.first / m.group;
      const int64_t n_scales = w.format.scales(w.in);
      const auto part = [&](const Tensor& t, int64_t column, int64_t n_columns, int64_t row,
                            int64_t n) {
        return rows(columns(t, column, n_columns), s.first + row, n);
      };
      place(p, s.count, [&](int64_t first, int64_t row, int64_t n) {
        const Tensor zero = m.zero ? part(m.zero, first_scale, n_scales, row, n) : Tensor{};
        ops_.pack(w, group, first,
                  QuantRows{part(m.q, s.columns.first, w.in, row, n),
                            part(m.scale, first_scale, n_scales, row, n), zero});
      });
    }
  }

  // Groups without an order of their own keep the one of x.
  void set_order(Weight& w, int64_t group, const Tensor& order) {
    if (w.order == nullptr) {
      auto* all = reinterpret_cast<int32_t*>(
          allocate(static_cast<size_t>(w.groups * w.in) * sizeof(int32_t)));
      for (int64_t g = 0; g < w.groups; ++g) std::iota(all + g * w.in, all + (g + 1) * w.in, 0);
      w.order = all;
    }
    std::copy_n(order.row<const int32_t>(0), w.in, const_cast<int32_t*>(w.order) + group * w.in);
  }

  // f(first, row, n): rows [row, row + n) of a part's matrix are rows first ... of the linear.
  template <class F>
  static void place(const Part& p, int64_t count, F&& f) {
    if (!p.interleaved) return f(p.first, int64_t{0}, count);
    for (int64_t row = 0; row < count; row += kPanel) {
      f(2 * row + p.first, row, std::min<int64_t>(kPanel, count - row));
    }
  }

  Tensor table(const Slice& s) {
    const Tensor src = matrix(s);
    const auto bytes = Arena::tensor_bytes(ops_.act(), src.shape);
    const Tensor t = view(allocate(bytes), ops_.act(), src.shape);
    copy(t, src);
    return t;
  }

  SiteNorm norm(const Slice& s, SiteKind kind, int32_t layer) {
    const Tensor src = source_.tensor(s.name, s.shape);
    const auto bytes = Arena::tensor_bytes(Dtype::f32, src.shape);
    const Tensor t = view(allocate(bytes), Dtype::f32, src.shape);
    copy(t, src);
    return {{t, spec_.norm_eps, spec_.norm_centered}, spec_.sites()({kind, layer})};
  }

  LoraSite site(SiteKind kind, int32_t layer, int64_t in, int64_t out, int64_t column = 0) const {
    return {spec_.sites()({kind, layer}), 0, in, out, column, kPanel};
  }

  std::vector<LoraSite> qkv_sites(int32_t i) const {
    if (spec_.fused_qkv) return {site(SiteKind::qkv, i, spec_.dim, spec_.qkv_dim())};
    const int64_t q = spec_.q_dim();
    const int64_t kv = spec_.kv_dim();
    return {site(SiteKind::q, i, spec_.dim, q), site(SiteKind::k, i, spec_.dim, kv, q),
            site(SiteKind::v, i, spec_.dim, kv, q + kv)};
  }

  LoraSite expert_site(SiteKind kind, int32_t layer, int64_t in, int64_t out) const {
    LoraSite s;
    s.first = spec_.sites()({kind, layer, static_cast<int32_t>(experts_.first)});
    s.group_stride = 1;
    s.in = in;
    s.out = out;
    if (kind != SiteKind::down) {
      s.panel_stride = 2 * kPanel;
      s.column = kind == SiteKind::up ? kPanel : 0;
    }
    return s;
  }

  void experts(DecoderLayer& d, const LayerSlices& l, int32_t i) {
    const int64_t f = spec_.ffn;
    const WeightFormat wanted = spec_.formats.linears;
    const WeightFormat gate_up = format_of(source_, gates_and_ups(l), 2, wanted);
    d.gate_up.w = weight(experts_.count, gate_up_dim(f), spec_.dim, gate_up);
    d.down.w = weight(experts_.count, spec_.dim, f, format_of(source_, downs(l), 1, wanted));
    for (int64_t e = 0; e < experts_.count; ++e) {
      const ExpertSlices& x = l.experts[static_cast<size_t>(e)];
      pack(d.gate_up.w, e, std::array{Part{x.gate, 0, true}, Part{x.up, kPanel, true}});
      pack(d.down.w, e, std::array{Part{x.down}});
    }
    d.gate_up.sites = {expert_site(SiteKind::gate, i, spec_.dim, f),
                       expert_site(SiteKind::up, i, spec_.dim, f)};
    d.down.sites = {expert_site(SiteKind::down, i, f, spec_.dim)};
  }

  const Spec& spec_;     // the rank's own
  const Range experts_;  // the same
  TensorSource& source_;
  Ops& ops_;
  ModelWeights out_;
  std::vector<std::byte> scratch_;
};

}  // namespace

ModelWeights load_weights(const Architecture& architecture, const ModelShare& share,
                          TensorSource& source, Ops& ops, const LoadProgress& progress) {
  const Spec& spec = share.whole;
  Loader loader(share, source, ops);
  loader.model(own_slices(architecture.model(spec), share));
  const auto has = [&](std::string_view name) { return source.has(name); };
  for (int32_t i = 0; i < spec.layers; ++i) {
    loader.layer(own_slices(architecture.layer(spec, i, has), share), i);
    if (progress) progress(i + 1, spec.layers);
  }
  return loader.take();
}

WeightFormats stored_formats(const Architecture& architecture, const Spec& spec,
                             TensorSource& source) {
  const auto has = [&](std::string_view name) { return source.has(name); };
  const LayerSlices l = architecture.layer(spec, 0, has);
  const Slice head = architecture.model(spec).head;
  return {format_of(source, downs(l), 1, spec.formats.linears),
          format_of(source, std::array{head}, 1, spec.formats.head)};
}

size_t weight_bytes(const Architecture& architecture, const ModelShare& share, TensorSource& source,
                    const Ops& ops) {
  const Spec& spec = share.own;
  const int64_t experts = share.placement.experts.count;
  const auto packed = [&](int64_t groups, int64_t out, int64_t in, WeightFormat format) {
    const Weight w = ops.weight_layout(groups, out, in, format);
    const bool ordered = !format.plain() && source.scheme().act_order;
    return static_cast<size_t>(groups * (w.group_bytes + (ordered ? 4 * in : 0)));
  };
  const auto has = [&](std::string_view name) { return source.has(name); };
  const WeightFormat wanted = spec.formats.linears;
  const ModelSlices m = own_slices(architecture.model(share.whole), share);
  size_t bytes =
      packed(1, spec.vocab, spec.dim, format_of(source, std::array{m.head}, 1, spec.formats.head)) +
      Arena::tensor_bytes(ops.act(), {spec.vocab, spec.dim}) +
      Arena::tensor_bytes(Dtype::f32, {spec.dim});
  for (int32_t i = 0; i < spec.layers; ++i) {
    const LayerSlices l = own_slices(architecture.layer(share.whole, i, has), share);
    if (spec.attention.heads > 0) {
      bytes += packed(1, spec.qkv_dim(), spec.dim, format_of(source, l.qkv, l.qkv.size(), wanted)) +
               packed(1, spec.dim, spec.q_dim(), format_of(source, std::array{l.o}, 1, wanted));
    }
    bytes += packed(1, spec.experts, spec.dim, {}) +
             packed(experts, gate_up_dim(spec.ffn), spec.dim,
                    format_of(source, gates_and_ups(l), 2, wanted)) +
             packed(experts, spec.dim, spec.ffn, format_of(source, downs(l), 1, wanted)) +
             2 * Arena::tensor_bytes(Dtype::f32, {spec.dim});
  }
  return bytes;
}

}  // namespace lorry
