#include "ops/checked_ops.h"

#include <utility>
#include <vector>

#include "base/error.h"
#include "ops/checked_plan.h"
#include "ops/checked_weight.h"

namespace lorry {

namespace {

class CheckedOps final : public Ops {
 public:
  explicit CheckedOps(std::unique_ptr<Ops> ops) : ops_(std::move(ops)) {}

  Dtype act() const override { return ops_->act(); }
  DeviceMemory* memory() const override { return ops_->memory(); }

  Weight weight_layout(int64_t groups, int64_t out, int64_t in,
                       WeightFormat format) const override {
    LORRY_CHECK(groups > 0 && out > 0 && in > 0, "{} groups [{}, {}]", groups, out, in);
    check_format(format);
    return ops_->weight_layout(groups, out, in, format);
  }

  void place(const Weight& w) const override {
    check_weight(w);
    ops_->place(w);
  }
  void spread(std::byte* at, size_t bytes) const override {
    LORRY_CHECK(at != nullptr || bytes == 0, "no memory");
    ops_->spread(at, bytes);
  }

  void pack(Weight& w, int64_t group, int64_t first, Tensor src, bool interleaved) override {
    LORRY_CHECK(src.cols() == w.in, "{} columns of {}", src.cols(), w.in);
    check_place(w, group, first, src.rows(), interleaved);
    check_source(src);
    check_weight(w);
    ops_->pack(w, group, first, src, interleaved);
  }

  void pack(Weight& w, int64_t group, int64_t first, const QuantRows& src,
            bool interleaved) override {
    LORRY_CHECK(!w.format.plain());
    check_place(w, group, first, src.q.rows(), interleaved);
    check_weight(w);
    check_rows(w, src);
    ops_->pack(w, group, first, src, interleaved);
  }

  void pack(Weight& w, int64_t group, int64_t first, const PackedRows& src,
            bool interleaved) override {
    check_place(w, group, first, src.n, interleaved);
    check_weight(w);
    check_rows(w, src);
    ops_->pack(w, group, first, src, interleaved);
  }

  void pack_matrix(std::byte* dst, Tensor src, WeightFormat format) const override {
    LORRY_CHECK(dst != nullptr, "no memory");
    check_source(src);
    check_format(format);
    ops_->pack_matrix(dst, src, format);
  }
  bool randomise(Weight& w, uint64_t seed) override {
    check_weight(w);
    return ops_->randomise(w, seed);
  }

  void unpack(Tensor y, const Weight& w, int64_t group, int64_t first) const override {
    LORRY_CHECK(w.data != nullptr && group >= 0 && group < w.groups && first >= 0 &&
                    first + y.rows() <= w.out,
                "group {} of {}, rows {} + {} of {}", group, w.groups, first, y.rows(), w.out);
    check_matrix("y", y, Dtype::f32, y.rows(), w.in);
    check_weight(w);
    ops_->unpack(y, w, group, first);
  }

  size_t lora_a_bytes(int64_t rank, int64_t in) const override {
    LORRY_CHECK(rank > 0 && in > 0, "[{}, {}]", rank, in);
    return ops_->lora_a_bytes(rank, in);
  }
  size_t lora_b_bytes(int64_t out, int64_t rank) const override {
    LORRY_CHECK(rank > 0 && out > 0, "[{}, {}]", out, rank);
    return ops_->lora_b_bytes(out, rank);
  }
  void pack_lora_a(std::byte* dst, Tensor a) const override {
    LORRY_CHECK(dst != nullptr, "no memory");
    check_source(a);
    ops_->pack_lora_a(dst, a);
  }
  void pack_lora_b(std::byte* dst, Tensor b) const override {
    LORRY_CHECK(dst != nullptr, "no memory");
    check_source(b);
    ops_->pack_lora_b(dst, b);
  }

  Tensor kv_layout(int64_t blocks, const AttentionSpec& spec) const override {
    check_spec(spec);
    return ops_->kv_layout(blocks, spec);
  }
  size_t attention_scratch_bytes(int64_t max_rows, const AttentionSpec& spec) const override {
    check_spec(spec);
    return ops_->attention_scratch_bytes(max_rows, spec);
  }
  size_t linear_scratch_bytes(int64_t rows, int64_t in) const override {
    LORRY_CHECK(rows >= 0 && in > 0, "{} rows of {}", rows, in);
    return ops_->linear_scratch_bytes(rows, in);
  }

  void embed(Tensor y, Tensor table, Tensor ids) override {
    check_matrix("y", y, Dtype::f32, y.rows(), table.cols());
    check_matrix("table", table, act(), table.rows(), table.cols());
    check_vector("ids", ids, Dtype::i32, y.rows());
    check_range("ids", ids, y.rows(), -1, table.rows());
    ops_->embed(y, table, ids);
  }

  void norm(Tensor y, Tensor x, const Norm& n) override {
    check_norm(y, x, n);
    ops_->norm(y, x, n);
  }

  void linear(Tensor y, Tensor x, const Weight& w, const RowGroups& groups,
              Tensor scratch) override {
    check_linear(y, x, w, groups, scratch);
    ops_->linear(y, x, w, groups, scratch);
  }

  void adapt(Tensor y, Tensor x, std::span<const LoraSite> sites,
             std::span<const LoraSegment> segments, const LoraPlan& plan, Tensor scratch) override {
    check_adapt(y, x, sites, segments, plan, scratch);
    ops_->adapt(y, x, sites, segments, plan, scratch);
  }

  void apply(Tensor y, Tensor x, const AdaptedLinear& l) override {
    check_apply(y, x, l);
    ops_->apply(y, x, l);
  }

  void apply_best(Tensor best, Tensor y, Tensor x, const AdaptedLinear& l) override {
    check_vector("best", best, Dtype::i32, y.rows());
    check_apply(y, x, l);
    ops_->apply_best(best, y, x, l);
  }

  void apply_glu(Tensor y, Tensor both, Tensor x, const AdaptedLinear& l,
                 Activation activation) override {
    check_apply(both, x, l);
    check_glu(y, both);
    ops_->apply_glu(y, both, x, l, activation);
  }

  void adapt_embedding(Tensor y, Tensor ids, const LoraSite& site,
                       std::span<const LoraSegment> segments, const LoraPlan& plan,
                       Tensor scratch) override {
    check_matrix("y", y, Dtype::f32, y.rows(), site.out);
    check_vector("ids", ids, Dtype::i32, y.rows());
    check_range("ids", ids, y.rows(), -1, site.in);
    check_segments(segments, plan, y.rows());
    int32_t rank = 0;
    for (const LoraSegment& s : segments) {
      rank = std::max(rank, check_patch(site, site.in, s, plan));
    }
    check_vector("scratch", scratch, Dtype::f32, lora_scratch_size(y.rows(), 1, rank));
    ops_->adapt_embedding(y, ids, site, segments, plan, scratch);
  }

  void clamp(Tensor x, float limit) override {
    check_clamp(x, limit);
    ops_->clamp(x, limit);
  }

  void rope(Tensor x, Tensor cos, Tensor sin) override {
    check_rope(x, cos, sin);
    ops_->rope(x, cos, sin);
  }

  void kv_write(const KvLayer& kv, Tensor k, Tensor v, Tensor slots,
                const AttentionSpec& spec) override {
    check_kv_write(kv, k, v, slots, spec);
    ops_->kv_write(kv, k, v, slots, spec);
  }

  void rope_write(const KvLayer& kv, Tensor qkv, float limit, Tensor cos, Tensor sin, Tensor slots,
                  const AttentionSpec& spec) override {
    const int64_t q = int64_t{spec.heads} * spec.head_dim;
    const int64_t k = int64_t{spec.kv_heads} * spec.head_dim;
    check_matrix("qkv", qkv, Dtype::f32, qkv.rows(), q + 2 * k);
    check_clamp(qkv, limit);
    LORRY_CHECK(2 * cos.cols() == spec.head_dim, "cos of {}, heads of {}", cos.cols(),
                spec.head_dim);
    check_rope(columns(qkv, 0, q + k), cos, sin);
    check_kv_write(kv, columns(qkv, q, k), columns(qkv, q + k, k), slots, spec);
    ops_->rope_write(kv, qkv, limit, cos, sin, slots, spec);
  }

  void attention(Tensor o, Tensor q, const KvLayer& kv, const AttentionPlan& plan,
                 const AttentionSpec& spec) override {
    check_spec(spec);
    check_cache(kv, spec);
    const int64_t cols = int64_t{spec.heads} * spec.head_dim;
    check_matrix("q", q, Dtype::f32, q.rows(), cols);
    check_matrix("o", o, act(), q.rows(), cols);
    check_plan(plan, spec, q.rows(), kv.k.shape[0]);
    check_vector("scratch", plan.scratch, Dtype::u8,
                 static_cast<int64_t>(ops_->attention_scratch_bytes(q.rows(), spec)));
    ops_->attention(o, q, kv, plan, spec);
  }

  void route(Route& route, Tensor scores, const Routing& routing) override {
    check_route(route, scores, routing);
    ops_->route(route, scores, routing);
  }

  void group(Route& route, const LoraPlan& plan) override {
    check_group(route, plan);
    for (int64_t r = 0; r < route.expert.rows(); ++r) {
      check_range("expert", rows_of(route.expert, r), route.expert.cols(), 0, route.experts);
    }
    ops_->group(route, plan);
  }

  void dispatch(Route& route, Tensor y, Tensor x, Tensor scores, const Routing& routing,
                const LoraPlan& plan) override {
    check_route(route, scores, routing);
    check_group(route, plan);
    check_matrix("x", x, x.dtype, scores.rows(), x.cols());
    check_matrix("y", y, x.dtype, scores.rows() * routing.top_k, x.cols());
    ops_->dispatch(route, y, x, scores, routing, plan);
  }

  void gather(Tensor y, Tensor x, Tensor index) override {
    check_matrix("y", y, x.dtype, y.rows(), x.cols());
    check_vector("index", index, Dtype::i32, y.rows());
    check_range("index", index, y.rows(), 0, x.rows());
    ops_->gather(y, x, index);
  }

  void glu(Tensor y, Tensor gu, Activation activation) override {
    check_glu(y, gu);
    ops_->glu(y, gu, activation);
  }

  void combine(Tensor y, Tensor d, const Route& route) override {
    check_combine(y, d, route);
    ops_->combine(y, d, route);
  }

  void add(Tensor x, std::span<const Tensor> parts) override {
    check_parts(x, parts);
    ops_->add(x, parts);
  }

  void add_norm(Tensor y, Tensor x, std::span<const Tensor> parts, const Norm& n) override {
    check_parts(x, parts);
    check_norm(y, x, n);
    ops_->add_norm(y, x, parts, n);
  }

  void combine_norm(Tensor y, Tensor x, Tensor z, Tensor d, const Route& route,
                    const Norm& n) override {
    check_combine(z, d, route);
    check_parts(x, {&z, 1});
    check_norm(y, x, n);
    ops_->combine_norm(y, x, z, d, route, n);
  }

  void add_silu(Tensor y, Tensor x, Tensor v, Tensor bias) override {
    check_matrix("y", y, act(), x.rows(), x.cols());
    check_matrix("x", x, act(), x.rows(), x.cols());
    check_matrix("v", v, Dtype::f32, x.rows(), x.cols());
    check_vector("bias", bias, Dtype::f32, x.cols());
    ops_->add_silu(y, x, v, bias);
  }

 private:
  void check_norm(const Tensor& y, const Tensor& x, const Norm& n) const {
    check_matrix("x", x, Dtype::f32, x.rows(), x.cols());
    check_matrix("y", y, act(), x.rows(), x.cols());
    check_vector("weight", n.weight, Dtype::f32, x.cols());
  }
  void check_parts(const Tensor& x, std::span<const Tensor> parts) const {
    check_matrix("x", x, Dtype::f32, x.rows(), x.cols());
    LORRY_CHECK(!parts.empty(), "nothing to add");
    for (const Tensor& part : parts) {
      check_matrix("part", part, Dtype::f32, x.rows(), x.cols());
    }
  }
  void check_kv_write(const KvLayer& kv, const Tensor& k, const Tensor& v, const Tensor& slots,
                      const AttentionSpec& spec) const {
    check_spec(spec);
    check_cache(kv, spec);
    const int64_t cols = int64_t{spec.kv_heads} * spec.head_dim;
    check_matrix("k", k, Dtype::f32, k.rows(), cols);
    check_matrix("v", v, Dtype::f32, k.rows(), cols);
    check_vector("slots", slots, Dtype::i32, k.rows());
    check_range("slots", slots, k.rows(), std::numeric_limits<int32_t>::min(),
                kv.k.shape[0] * kBlockTokens);
  }
  static Tensor rows_of(Tensor t, int64_t r) { return rows(t, r, 1); }

  void check_linear(const Tensor& y, const Tensor& x, const Weight& w, const RowGroups& groups,
                    const Tensor& scratch) const {
    LORRY_CHECK(w.data != nullptr && w.dtype == act(), "weight {}", to_string(w.dtype));
    check_weight(w);
    check_matrix("x", x, act(), x.rows(), w.in);
    check_matrix("y", y, Dtype::f32, x.rows(), w.out);
    check_groups(groups, w.groups, x.rows());
    if (!w.format.plain() || scratch.data != nullptr) {
      check_vector("scratch", scratch, Dtype::u8,
                   static_cast<int64_t>(ops_->linear_scratch_bytes(x.rows(), w.in)));
    }
  }

  void check_adapt(const Tensor& y, const Tensor& x, std::span<const LoraSite> sites,
                   std::span<const LoraSegment> segments, const LoraPlan& plan,
                   const Tensor& scratch) const {
    check_matrix("x", x, act(), x.rows(), x.cols());
    check_matrix("y", y, Dtype::f32, x.rows(), y.cols());
    check_segments(segments, plan, x.rows());
    int32_t rank = 0;
    for (const LoraSegment& s : segments) {
      for (const LoraSite& site : sites) {
        LORRY_CHECK(
            site.in == x.cols() && site.column >= 0 && site.column_of(site.out - 1) < y.cols(),
            "a site [{}, {}] at column {} of x {}, y {}", site.out, site.in, site.column,
            to_string(x.shape), to_string(y.shape));
        rank = std::max(rank, check_patch(site, site.out, s, plan));
      }
    }
    check_vector("scratch", scratch, Dtype::f32,
                 lora_scratch_size(x.rows(), static_cast<int64_t>(sites.size()), rank));
  }

  void check_apply(const Tensor& y, const Tensor& x, const AdaptedLinear& l) const {
    check_linear(y, x, l.w, l.groups, l.scratch);
    if (!l.segments.empty()) check_adapt(y, x, l.sites, l.segments, l.plan, l.lora_scratch);
  }

  void check_glu(const Tensor& y, const Tensor& gu) const {
    check_matrix("y", y, act(), gu.rows(), y.cols());
    const int64_t wide = 2 * ((y.cols() + kPanel - 1) / kPanel * kPanel);
    check_matrix("gu", gu, Dtype::f32, gu.rows(), wide);
  }

  static void check_source(const Tensor& t) {
    LORRY_CHECK(t.dtype == Dtype::f32 || t.dtype == Dtype::f16 || t.dtype == Dtype::bf16,
                "cannot pack from {}", to_string(t.dtype));
    check_matrix("source", t, t.dtype, t.rows(), t.cols());
  }

  void check_cache(const KvLayer& kv, const AttentionSpec& spec) const {
    const Tensor expected = ops_->kv_layout(kv.k.shape[0], spec);
    for (const Tensor* t : {&kv.k, &kv.v}) {
      LORRY_CHECK(t->data != nullptr && t->dtype == expected.dtype && t->shape == expected.shape,
                  "cache {} {}, expected {} {}", to_string(t->dtype), to_string(t->shape),
                  to_string(expected.dtype), to_string(expected.shape));
    }
  }

  std::unique_ptr<Ops> ops_;
};

}  // namespace

std::unique_ptr<Ops> make_checked_ops(std::unique_ptr<Ops> ops) {
  return std::make_unique<CheckedOps>(std::move(ops));
}

}  // namespace lorry
