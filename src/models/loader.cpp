#include "models/loader.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "weights/slice.h"

namespace lorry {

namespace {

// Allocates one Buffer per matrix family and packs into it.
class Loader {
 public:
  Loader(const Spec& spec, TensorSource& source, Ops& ops)
      : spec_(spec), source_(source), ops_(ops) {}

  ModelWeights take() { return std::move(out_); }

  void model(const ModelSlices& m) {
    out_.embed = table(m.embed);
    out_.embed_site = site(SiteKind::embed, 0, spec_.vocab, spec_.dim);
    out_.final_norm = norm(m.final_norm, SiteKind::final_norm, 0);
    out_.head = dense({m.head}, spec_.vocab, spec_.dim);
    out_.head.sites = {site(SiteKind::lm_head, 0, spec_.dim, spec_.vocab)};
  }

  void layer(const LayerSlices& l, int32_t i) {
    DecoderLayer d;
    d.attn_norm = norm(l.attn_norm, SiteKind::attn_norm, i);
    d.ffn_norm = norm(l.ffn_norm, SiteKind::ffn_norm, i);
    d.wqkv = dense(l.qkv, spec_.qkv_dim(), spec_.dim);
    d.wqkv.sites = qkv_sites(i);
    d.wo = dense({l.o}, spec_.dim, spec_.q_dim());
    d.wo.sites = {site(SiteKind::o, i, spec_.q_dim(), spec_.dim)};
    d.router = dense({l.router}, spec_.experts, spec_.dim);
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

  Weight weight(int64_t groups, int64_t out, int64_t in) {
    Weight w = ops_.weight_layout(groups, out, in);
    w.data = allocate(static_cast<size_t>(w.groups * w.group_bytes));
    return w;
  }

  // The rows of a slice as a matrix; transposed ones are turned in scratch_.
  Tensor matrix(const Slice& s) {
    const Tensor t = source_.tensor(s.name, s.shape);
    const int64_t cols = s.shape[-1];
    Tensor m = view(t.data, t.dtype, {t.shape.size() / cols, cols});
    m = rows(m, s.first, s.count);
    if (!s.transposed) return m;
    scratch_.resize(static_cast<size_t>(s.count * cols * size_of(t.dtype)));
    const Tensor turned = view(scratch_.data(), t.dtype, {cols, s.count});
    copy_transposed(turned, m);
    return turned;
  }

  Linear dense(const std::vector<Slice>& parts, int64_t out, int64_t in) {
    Linear l{weight(1, out, in), {}};
    int64_t row = 0;
    for (const Slice& part : parts) {
      const Tensor m = matrix(part);
      ops_.pack(l.w, 0, row, m);
      row += m.shape[0];
    }
    LORRY_CHECK(row == out, "{} rows packed of {}", row, out);
    return l;
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
    s.first = spec_.sites()({kind, layer, 0});
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
    d.gate_up.w = weight(spec_.experts, gate_up_dim(f), spec_.dim);
    d.down.w = weight(spec_.experts, spec_.dim, f);
    for (int32_t e = 0; e < spec_.experts; ++e) {
      const ExpertSlices& x = l.experts[static_cast<size_t>(e)];
      interleave(d.gate_up.w, e, matrix(x.gate), 0);
      interleave(d.gate_up.w, e, matrix(x.up), kPanel);
      ops_.pack(d.down.w, e, 0, matrix(x.down));
    }
    d.gate_up.sites = {expert_site(SiteKind::gate, i, spec_.dim, f),
                       expert_site(SiteKind::up, i, spec_.dim, f)};
    d.down.sites = {expert_site(SiteKind::down, i, f, spec_.dim)};
  }

  // Panels of `m` to every other panel of w, from row `first`.
  void interleave(Weight& w, int64_t expert, Tensor m, int64_t first) {
    for (int64_t row = 0; row < m.shape[0]; row += kPanel) {
      const int64_t n = std::min<int64_t>(kPanel, m.shape[0] - row);
      ops_.pack(w, expert, 2 * row + first, rows(m, row, n));
    }
  }

  const Spec& spec_;
  TensorSource& source_;
  Ops& ops_;
  ModelWeights out_;
  std::vector<std::byte> scratch_;
};

}  // namespace

ModelWeights load_weights(const Architecture& architecture, const Spec& spec, TensorSource& source,
                          Ops& ops, const LoadProgress& progress) {
  Loader loader(spec, source, ops);
  loader.model(architecture.model(spec));
  const auto has = [&](std::string_view name) { return source.has(name); };
  for (int32_t i = 0; i < spec.layers; ++i) {
    loader.layer(architecture.layer(spec, i, has), i);
    if (progress) progress(i + 1, spec.layers);
  }
  return loader.take();
}

size_t weight_bytes(const Spec& spec, const Ops& ops) {
  const auto packed = [&](int64_t groups, int64_t out, int64_t in) {
    const Weight w = ops.weight_layout(groups, out, in);
    return static_cast<size_t>(w.groups * w.group_bytes);
  };
  const size_t layer =
      packed(1, spec.qkv_dim(), spec.dim) + packed(1, spec.dim, spec.q_dim()) +
      packed(1, spec.experts, spec.dim) + packed(spec.experts, gate_up_dim(spec.ffn), spec.dim) +
      packed(spec.experts, spec.dim, spec.ffn) + 2 * Arena::tensor_bytes(Dtype::f32, {spec.dim});
  return static_cast<size_t>(spec.layers) * layer + packed(1, spec.vocab, spec.dim) +
         Arena::tensor_bytes(ops.act(), {spec.vocab, spec.dim}) +
         Arena::tensor_bytes(Dtype::f32, {spec.dim});
}

}  // namespace lorry
