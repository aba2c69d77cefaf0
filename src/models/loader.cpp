#include "models/loader.h"

#include <algorithm>
#include <array>
#include <numeric>
#include <span>
#include <utility>

#include "base/error.h"
#include "models/device_copy.h"
#include "models/read_ahead.h"
#include "models/stored_slices.h"
#include "weights/slice.h"

namespace lorry {

namespace {

// Rows of a linear that come from one slice: from row `first` on, or every other panel from there.
struct Part {
  const Slice& slice;
  int64_t first = 0;
  bool interleaved = false;
};

// Allocates one Buffer per matrix family and packs into it; or hands what it packs to a sink.
class Loader {
 public:
  Loader(const ModelShare& share, TensorSource& source, Ops& ops, ThreadPool* copy_with)
      : spec_(share.own),
        experts_(share.placement.experts),
        whole_(share.is_whole()),
        source_(source),
        ops_(ops),
        copy_with_(copy_with) {}
  Loader(const ModelShare& share, TensorSource& source, Ops& ops, PieceSink& sink, bool data)
      : spec_(share.own),
        experts_(share.placement.experts),
        whole_(share.is_whole()),
        source_(source),
        ops_(ops),
        sink_(&sink),
        data_(data) {}

  // `what` is done to `bytes` of weights.
  void report_to(const ProgressSink& sink, std::string_view what, size_t bytes) {
    progress_ = &sink;
    report_ = {what, 0, static_cast<int64_t>(bytes)};
  }

  ModelWeights take() { return std::move(out_); }

  void model(const ModelSlices& m) {
    out_.embed = table(m.embed);
    out_.embed_site = site(SiteKind::embed, 0, spec_.vocab, spec_.dim);
    out_.final_norm = norm("final_norm", m.final_norm, SiteKind::final_norm, 0);
    const bool tied = spec_.tied_head && spec_.formats.head.plain();
    if (sink_ == nullptr || !tied) {
      out_.head.w = dense("lm_head", {m.head}, spec_.vocab, spec_.dim, spec_.formats.head);
    }
    out_.head.sites = {site(SiteKind::lm_head, 0, spec_.dim, spec_.vocab)};
  }

  void layer(const LayerSlices& l, int32_t i) {
    ahead_.begin(l);
    const auto name = [i](std::string_view what) { return piece_name(i, what); };
    const WeightFormat linears = spec_.formats.linears;
    DecoderLayer d;
    d.attn_norm = norm(name("attn_norm"), l.attn_norm, SiteKind::attn_norm, i);
    d.ffn_norm = norm(name("ffn_norm"), l.ffn_norm, SiteKind::ffn_norm, i);
    if (spec_.attention.heads > 0) {
      d.wqkv.w = dense(name("qkv"), l.qkv, spec_.qkv_dim(), spec_.dim, linears);
      d.wqkv.sites = qkv_sites(i);
      d.wo.w = dense(name("o"), {l.o}, spec_.dim, spec_.q_dim(), linears);
      d.wo.sites = {site(SiteKind::o, i, spec_.q_dim(), spec_.dim)};
    }
    d.router.w = dense(name("router"), {l.router}, spec_.experts, spec_.dim, {});
    d.router.sites = {site(SiteKind::router, i, spec_.dim, spec_.experts)};
    experts(d, l, i);
    out_.layers.push_back(std::move(d));
  }

 private:
  void done(int64_t bytes) {
    if (progress_ == nullptr) return;
    report_.done = std::min(report_.done + bytes, report_.total);
    (*progress_)(report_);
  }

  std::byte* allocate(size_t bytes) {
    out_.storage.emplace_back(bytes, ops_.memory());
    out_.bytes += bytes;
    return out_.storage.back().data();
  }

  // A linear that `fill` packs, unless the source has it packed as it is.
  template <class F>
  Weight weight(const std::string& name, Weight w, F&& fill) {
    const auto bytes = static_cast<size_t>(w.groups * w.group_bytes);
    if (source_.packed() != nullptr && whole_ && !w.format.plain()) {
      const PackedPiece& piece = source_.piece(name, w);
      if (copy_with_ != nullptr) {
        w.data = allocate(bytes);
        ops_.place(w);
        source_.packed()->read(piece, w.data, *copy_with_);
      } else {
        w.data = source_.packed()->data(piece);
        out_.bytes += bytes;
      }
      done(static_cast<int64_t>(bytes));
    } else if (sink_ == nullptr) {
      w.data = allocate(bytes);
      ops_.place(w);
      if (!source_.random() || !ops_.randomise(w, source_.seed(name))) {
        fill(w);
      } else {
        done(static_cast<int64_t>(bytes));
      }
    } else {
      const Buffer own(data_ ? bytes : 0);
      w.data = own.data();
      if (data_) fill(w);
      sink_->packed(name, w);
      w.data = nullptr;
    }
    return w;
  }

  // The rows of a slice as a matrix; transposed ones are turned in scratch_.
  Tensor matrix(const Slice& s) {
    const Tensor t = source_.tensor(s.name, s.shape);
    const int64_t cols = s.shape[-1];
    Tensor m = view(t.data, t.dtype, {t.shape.size() / cols, cols});
    m = rows(m, s.first, s.count);
    if (s.columns.count > 0) m = columns(m, s.columns.first, s.columns.count);
    if (s.inputs.count > 0) {
      const auto [first, count] = s.inputs;
      m = s.transposed ? rows(m, first, count) : columns(m, first, count);
    }
    if (!s.transposed) return m;
    scratch_.resize(static_cast<size_t>(m.rows() * m.cols() * size_of(t.dtype)));
    const Tensor turned = view(scratch_.data(), t.dtype, {m.cols(), m.rows()});
    copy_transposed(turned, m);
    return turned;
  }

  Weight dense(const std::string& name, const std::vector<Slice>& slices, int64_t out, int64_t in,
               WeightFormat wanted) {
    const WeightFormat format = format_of(source_, slices, slices.size(), wanted);
    const Weight layout = ops_.weight_layout(1, out, in, format);
    if (sink_ != nullptr && format.plain()) {
      sink_->plain(name, matrix(slices.front()));
      return layout;
    }
    return weight(name, layout, [&](Weight& w) {
      std::vector<Part> parts;
      int64_t row = 0;
      for (const Slice& s : slices) {
        parts.push_back({s, row});
        row += s.outputs();
      }
      LORRY_CHECK(row == out, "{} rows of {}", row, out);
      pack(w, 0, parts, wanted);
    });
  }

  // `wanted`: how it would be stored if no other rank had a part of it.
  void pack(Weight& w, int64_t group, std::span<const Part> parts, WeightFormat wanted) {
    const bool kept = !w.format.plain() && source_.scheme().kind != QuantScheme::Kind::none;
    if (kept) return pack_quantised(w, group, parts);
    for (const Part& p : parts) {
      ahead_.at(p.slice);
      if (const PackedRows packed = rows_of(p.slice, wanted); packed.from.data != nullptr) {
        pack_packed(w, group, p, packed);
      } else {
        const Tensor m = matrix(p.slice);
        if (source_.quantised(p.slice.name)) ++out_.widened;
        ops_.pack(w, group, p.first, m, p.interleaved);
      }
      source_.release();
    }
    done(w.group_bytes);
  }

  // The slice as rows that are packed: those of a packed source, or where a scale is of inputs that
  // several ranks have, rows that are quantised whole and live until the next call. On any number
  // of ranks a model's weights are the same.
  PackedRows rows_of(const Slice& s, WeightFormat wanted) {
    if (source_.packed() != nullptr) return packed_rows(source_, ops_, s);
    const bool split = s.inputs.count > 0 && s.inputs.count < s.all_inputs();
    const bool own_scales = wanted.group > 0 && has_whole_scales(s, wanted.group);
    const bool stored = source_.scheme().kind != QuantScheme::Kind::none;
    if (stored || wanted.plain() || !split || own_scales) return {};
    Slice whole = s;
    whole.inputs = {};
    const Tensor m = matrix(whole);
    PackedRows rows{ops_.weight_layout(1, m.rows(), m.cols(), wanted)};
    quantised_.resize(static_cast<size_t>(rows.from.group_bytes));
    rows.from.data = quantised_.data();
    ops_.pack(rows.from, 0, 0, m);
    rows.n = m.rows();
    rows.input = s.inputs.first;
    return rows;
  }

  void pack_packed(Weight& w, int64_t group, const Part& p, const PackedRows& packed) {
    if (!w.format.plain()) return ops_.pack(w, group, p.first, packed, p.interleaved);
    ++out_.widened;
    std::vector<float> values(static_cast<size_t>(packed.n * w.in));
    const Tensor wide = view(values.data(), Dtype::f32, {packed.n, w.in});
    unpack_rows(wide, ops_, packed);
    ops_.pack(w, group, p.first, wide, p.interleaved);
  }

  void pack_quantised(Weight& w, int64_t group, std::span<const Part> parts) {
    for (const Part& p : parts) {
      const Slice& s = p.slice;
      const QuantMatrix m = source_.matrix(s.name, s.shape[0], s.shape[1]);
      if (m.order) set_order(w, group, m.order);
      // Of the scales: all where they are of whole rows.
      const int64_t first_scale = m.group == 0 ? 0 : s.inputs.first / m.group;
      const int64_t n_scales = w.format.scales(w.in);
      const auto part = [&](const Tensor& t, int64_t column, int64_t n) {
        return t ? rows(columns(t, column, n), s.first, s.count) : Tensor{};
      };
      ops_.pack(w, group, p.first,
                QuantRows{part(m.q, s.inputs.first, w.in), part(m.scale, first_scale, n_scales),
                          part(m.zero, first_scale, n_scales)},
                p.interleaved);
      source_.release();
    }
    done(w.group_bytes);
  }

  // Groups without an order of their own keep the one of x.
  void set_order(Weight& w, int64_t group, const Tensor& order) {
    const auto put = [&](int64_t g, const Tensor& values) {
      auto* to = const_cast<int32_t*>(w.order) + g * w.in;
      put_tensor(ops_.memory(), view(to, Dtype::i32, {w.in}), values);
    };
    if (w.order == nullptr) {
      w.order = reinterpret_cast<int32_t*>(
          allocate(static_cast<size_t>(w.groups * w.in) * sizeof(int32_t)));
      std::vector<int32_t> same(static_cast<size_t>(w.in));
      std::iota(same.begin(), same.end(), 0);
      for (int64_t g = 0; g < w.groups; ++g) put(g, view(same.data(), Dtype::i32, {w.in}));
    }
    put(group, view(order.data, Dtype::i32, {w.in}));
  }

  Tensor table(const Slice& s) {
    const Tensor src = matrix(s);
    out_.from_f16 = src.dtype == Dtype::f16;
    const auto bytes = Arena::tensor_bytes(ops_.act(), src.shape);
    done(static_cast<int64_t>(bytes));
    if (sink_ != nullptr) {
      sink_->plain("embed", src);
      return {};
    }
    if (source_.packed() != nullptr && copy_with_ == nullptr && src.dtype == ops_.act()) {
      out_.bytes += bytes;
      return src;
    }
    const Tensor t = view(allocate(bytes), ops_.act(), src.shape);
    ops_.spread(t.data, bytes);
    put_tensor(ops_.memory(), t, src);
    source_.release();
    return t;
  }

  SiteNorm norm(const std::string& name, const Slice& s, SiteKind kind, int32_t layer) {
    const Tensor src = source_.tensor(s.name, s.shape);
    if (sink_ != nullptr) {
      sink_->plain(name, src);
      return {};
    }
    const auto bytes = Arena::tensor_bytes(Dtype::f32, src.shape);
    const Tensor t = view(allocate(bytes), Dtype::f32, src.shape);
    put_tensor(ops_.memory(), t, src);
    source_.release();
    return {{t, spec_.norm_eps, spec_.norm_centered}, spec_.sites()({kind, layer})};
  }

  LoraSite site(SiteKind kind, int32_t layer, int64_t in, int64_t out, int64_t column = 0) const {
    return {spec_.sites()({kind, layer}), 0, 1, in, out, column, kPanel};
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
    s.groups = static_cast<int32_t>(experts_.count);
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
    const auto layout = [&](int64_t out, int64_t in, WeightFormat format) {
      return ops_.weight_layout(experts_.count, out, in, format);
    };
    d.gate_up.w =
        weight(piece_name(i, "gate_up"),
               layout(gate_up_dim(f), spec_.dim, format_of(source_, gates_and_ups(l), 2, wanted)),
               [&](Weight& w) {
                 for (int64_t e = 0; e < experts_.count; ++e) {
                   const ExpertSlices& x = l.experts[static_cast<size_t>(e)];
                   pack(w, e, std::array{Part{x.gate, 0, true}, Part{x.up, kPanel, true}}, wanted);
                 }
               });
    d.down.w =
        weight(piece_name(i, "down"), layout(spec_.dim, f, format_of(source_, downs(l), 1, wanted)),
               [&](Weight& w) {
                 for (int64_t e = 0; e < experts_.count; ++e) {
                   pack(w, e, std::array{Part{l.experts[static_cast<size_t>(e)].down}}, wanted);
                 }
               });
    d.gate_up.sites = {expert_site(SiteKind::gate, i, spec_.dim, f),
                       expert_site(SiteKind::up, i, spec_.dim, f)};
    d.down.sites = {expert_site(SiteKind::down, i, f, spec_.dim)};
  }

  const Spec& spec_;     // the rank's own
  const Range experts_;  // the same
  const bool whole_;     // there are no other ranks
  TensorSource& source_;
  ReadAhead ahead_{source_};
  Ops& ops_;
  ThreadPool* copy_with_ = nullptr;
  PieceSink* sink_ = nullptr;
  bool data_ = true;  // for the sink
  const ProgressSink* progress_ = nullptr;
  Progress report_;
  ModelWeights out_;
  std::vector<std::byte> scratch_;
  std::vector<std::byte> quantised_;  // of rows_of()
};

void load_layers(Loader& loader, const Architecture& architecture, const ModelShare& share,
                 TensorSource& source) {
  const Spec& spec = share.whole;
  loader.model(own_slices(model_slices(architecture, spec, source), share));
  for (int32_t i = 0; i < spec.layers; ++i) {
    loader.layer(own_slices(layer_slices(architecture, spec, source, i), share), i);
  }
  source.release();
}

}  // namespace

ModelWeights load_weights(const Architecture& architecture, const ModelShare& share,
                          TensorSource& source, Ops& ops, const LoadOptions& options) {
  Loader loader(share, source, ops, options.copy_with);
  if (options.progress) {
    loader.report_to(options.progress, "loading weights",
                     weight_bytes(architecture, share, source, ops));
  }
  load_layers(loader, architecture, share, source);
  return loader.take();
}

void each_piece(const Architecture& architecture, const Spec& spec, TensorSource& source, Ops& ops,
                PieceSink& sink, bool data, const ProgressSink& progress) {
  const ModelShare share(spec);  // the loader looks at it all the while
  Loader loader(share, source, ops, sink, data);
  if (progress) {
    loader.report_to(progress, "packing weights", weight_bytes(architecture, share, source, ops));
  }
  load_layers(loader, architecture, share, source);
}

}  // namespace lorry
