#include "models/fold.h"

#include <algorithm>
#include <array>
#include <numeric>
#include <vector>

#include "models/device_copy.h"
#include "weights/slice.h"

namespace lorry {

namespace {

constexpr int64_t kUnits = 256;  // unit vectors at a time
constexpr int64_t kTokens = 4096;

// The matrix of a linear under an adapter is what it makes of the unit vectors: so whatever adapt()
// can do is folded by adapt() itself.
class Folder {
 public:
  Folder(const AdapterView& adapter, Ops& ops) : ops_(ops), adapters_{adapter} {
    for (const SitePatch& p : adapter.patches) max_rank_ = std::max(max_rank_, p.rank);
  }

  void fold(Linear& linear) {
    for (int64_t g = 0; g < linear.w.groups; ++g) {
      const auto group = static_cast<int32_t>(g);
      const bool changed = std::any_of(linear.sites.begin(), linear.sites.end(),
                                       [&](const LoraSite& s) { return !neutral(s.index(group)); });
      if (changed) fold_group(linear, group);
    }
  }

  void fold(SiteNorm& norm) const {
    const SitePatch& patch = adapters_[0].patches[static_cast<size_t>(norm.site)];
    if (patch.change == nullptr) return;
    const Tensor& own = norm.norm.weight;
    const Tensor theirs = view(const_cast<std::byte*>(patch.change->weight), Dtype::f32, own.shape);
    const Buffer between(Arena::tensor_bytes(Dtype::f32, own.shape));
    const Tensor values = view(between.data(), Dtype::f32, own.shape);
    get_tensor(ops_.memory(), values, theirs);
    put_tensor(ops_.memory(), own, values);
  }

  void fold_embedding(Tensor table, const LoraSite& site) {
    if (neutral(site.index(0))) return;
    const int64_t vocab = table.shape[0];
    Matrix y(kTokens, table.shape[1], Dtype::f32);
    for (int64_t first = 0; first < vocab; first += kTokens) {
      const int64_t n = std::min(kTokens, vocab - first);
      std::vector<int32_t> ids(static_cast<size_t>(n));
      std::iota(ids.begin(), ids.end(), static_cast<int32_t>(first));
      const Tensor id = view(ids.data(), Dtype::i32, {n});
      const Tensor rows_of = rows(y.tensor, 0, n);
      const auto segment = segments(n, 0);
      ops_.embed(rows_of, table, id);
      ops_.adapt_embedding(rows_of, id, site, segment, plan(segment), scratch(n, 1));
      put_tensor(ops_.memory(), rows(table, first, n), rows_of);
    }
  }

 private:
  struct Matrix {
    Matrix(int64_t n, int64_t cols, Dtype dtype) : buffer(Arena::tensor_bytes(dtype, {n, cols})) {
      tensor = view(buffer.data(), dtype, {n, cols});
    }
    Buffer buffer;
    Tensor tensor;
  };

  bool neutral(int32_t site) const {
    return adapters_[0].patches[static_cast<size_t>(site)].neutral();
  }

  static std::array<LoraSegment, 1> segments(int64_t n, int32_t group) {
    return {{{0, static_cast<int32_t>(n), 0, group}}};
  }

  LoraPlan plan(std::span<const LoraSegment> segments) const {
    LoraPlan p;
    p.adapters = adapters_;
    p.segments = segments;
    return p;
  }

  Tensor scratch(int64_t n, size_t sites) {
    const int64_t size = Ops::lora_scratch_size(n, static_cast<int64_t>(sites), max_rank_);
    scratch_.resize(static_cast<size_t>(size));
    return view(scratch_.data(), Dtype::f32, {1, size});
  }

  void fold_group(Linear& linear, int32_t group) {
    Weight& w = linear.w;
    Matrix matrix(w.out, w.in, Dtype::f32);
    ops_.unpack(matrix.tensor, w, group, 0);
    Matrix units(kUnits, w.in, ops_.act());
    Matrix y(kUnits, w.out, Dtype::f32);
    for (int64_t first = 0; first < w.in; first += kUnits) {
      const int64_t n = std::min(kUnits, w.in - first);
      const Tensor x = rows(units.tensor, 0, n);
      set_units(x, first);
      const Tensor out = rows(y.tensor, 0, n);
      const Tensor columns_of = columns(matrix.tensor, first, n);
      copy_transposed(out, columns_of);
      const auto segment = segments(n, group);
      ops_.adapt(out, x, linear.sites, segment, plan(segment), scratch(n, linear.sites.size()));
      copy_transposed(columns_of, out);
    }
    ops_.pack(w, group, 0, matrix.tensor);
  }

  // Row i is the unit vector first + i.
  static void set_units(const Tensor& x, int64_t first) {
    std::vector<float> unit(static_cast<size_t>(x.cols()));
    for (int64_t i = 0; i < x.rows(); ++i) {
      float& one = unit[static_cast<size_t>(first + i)];
      one = 1.0F;
      copy(rows(x, i, 1), view(unit.data(), Dtype::f32, {1, x.cols()}));
      one = 0.0F;
    }
  }

  Ops& ops_;
  const std::array<AdapterView, 1> adapters_;
  int32_t max_rank_ = 1;
  std::vector<float> scratch_;
};

}  // namespace

void fold_adapter(ModelWeights& weights, const AdapterView& adapter, Ops& ops) {
  Folder folder(adapter, ops);
  folder.fold_embedding(weights.embed, weights.embed_site);
  for (DecoderLayer& layer : weights.layers) {
    for (SiteNorm* norm : {&layer.attn_norm, &layer.ffn_norm}) folder.fold(*norm);
    for (Linear* linear : {&layer.wqkv, &layer.wo, &layer.router, &layer.gate_up, &layer.down}) {
      folder.fold(*linear);
    }
  }
  folder.fold(weights.final_norm);
  folder.fold(weights.head);
}

}  // namespace lorry
