#include "ops/timed_ops.h"

#include <chrono>
#include <utility>

namespace lorry {

namespace {

class TimedOps final : public Ops {
 public:
  TimedOps(std::unique_ptr<Ops> ops, OpTimes& times) : ops_(std::move(ops)), times_(times) {}

  Dtype act() const override { return ops_->act(); }
  DeviceMemory* memory() const override { return ops_->memory(); }
  Weight weight_layout(int64_t groups, int64_t out, int64_t in,
                       WeightFormat format) const override {
    return ops_->weight_layout(groups, out, in, format);
  }
  void place(const Weight& w) const override { ops_->place(w); }
  void spread(std::byte* at, size_t bytes) const override { ops_->spread(at, bytes); }
  void pack(Weight& w, int64_t group, int64_t first, Tensor src, bool interleaved) override {
    ops_->pack(w, group, first, src, interleaved);
  }
  void pack(Weight& w, int64_t group, int64_t first, const QuantRows& src,
            bool interleaved) override {
    ops_->pack(w, group, first, src, interleaved);
  }
  void pack(Weight& w, int64_t group, int64_t first, const PackedRows& src,
            bool interleaved) override {
    ops_->pack(w, group, first, src, interleaved);
  }
  void pack_matrix(std::byte* dst, Tensor src, WeightFormat format) const override {
    ops_->pack_matrix(dst, src, format);
  }
  bool randomise(Weight& w, uint64_t seed) override { return ops_->randomise(w, seed); }
  void unpack(Tensor y, const Weight& w, int64_t group, int64_t first) const override {
    ops_->unpack(y, w, group, first);
  }
  size_t lora_a_bytes(int64_t rank, int64_t in) const override {
    return ops_->lora_a_bytes(rank, in);
  }
  size_t lora_b_bytes(int64_t out, int64_t rank) const override {
    return ops_->lora_b_bytes(out, rank);
  }
  void pack_lora_a(std::byte* dst, Tensor a) const override { ops_->pack_lora_a(dst, a); }
  void pack_lora_b(std::byte* dst, Tensor b) const override { ops_->pack_lora_b(dst, b); }
  Tensor kv_layout(int64_t blocks, const AttentionSpec& spec) const override {
    return ops_->kv_layout(blocks, spec);
  }
  size_t attention_scratch_bytes(int64_t max_rows, const AttentionSpec& spec) const override {
    return ops_->attention_scratch_bytes(max_rows, spec);
  }
  size_t linear_scratch_bytes(int64_t rows, int64_t in) const override {
    return ops_->linear_scratch_bytes(rows, in);
  }

  void embed(Tensor y, Tensor table, Tensor ids) override {
    time(OpTimes::embed, [&] { ops_->embed(y, table, ids); });
  }
  void norm(Tensor y, Tensor x, const Norm& n) override {
    time(OpTimes::norm, [&] { ops_->norm(y, x, n); });
  }
  void linear(Tensor y, Tensor x, const Weight& w, const RowGroups& groups,
              Tensor scratch) override {
    time(OpTimes::linear, [&] { ops_->linear(y, x, w, groups, scratch); });
  }
  void adapt(Tensor y, Tensor x, std::span<const LoraSite> sites,
             std::span<const LoraSegment> segments, const LoraPlan& plan, Tensor scratch) override {
    time(OpTimes::adapt, [&] { ops_->adapt(y, x, sites, segments, plan, scratch); });
  }
  void apply(Tensor y, Tensor x, const AdaptedLinear& l) override {
    time(OpTimes::linear, [&] { ops_->apply(y, x, l); });
  }
  void apply_best(Tensor best, Tensor y, Tensor x, const AdaptedLinear& l) override {
    time(OpTimes::linear, [&] { ops_->apply_best(best, y, x, l); });
  }
  void apply_glu(Tensor y, Tensor both, Tensor x, const AdaptedLinear& l,
                 Activation activation) override {
    time(OpTimes::linear, [&] { ops_->apply_glu(y, both, x, l, activation); });
  }
  void adapt_embedding(Tensor y, Tensor ids, const LoraSite& site,
                       std::span<const LoraSegment> segments, const LoraPlan& plan,
                       Tensor scratch) override {
    time(OpTimes::adapt, [&] { ops_->adapt_embedding(y, ids, site, segments, plan, scratch); });
  }
  void clamp(Tensor x, float limit) override {
    time(OpTimes::rope, [&] { ops_->clamp(x, limit); });
  }
  void rope(Tensor x, Tensor cos, Tensor sin) override {
    time(OpTimes::rope, [&] { ops_->rope(x, cos, sin); });
  }
  void kv_write(const KvLayer& kv, Tensor k, Tensor v, Tensor slots,
                const AttentionSpec& spec) override {
    time(OpTimes::attention, [&] { ops_->kv_write(kv, k, v, slots, spec); });
  }
  void rope_write(const KvLayer& kv, Tensor qkv, float limit, Tensor cos, Tensor sin, Tensor slots,
                  const AttentionSpec& spec) override {
    time(OpTimes::rope, [&] { ops_->rope_write(kv, qkv, limit, cos, sin, slots, spec); });
  }
  void attention(Tensor o, Tensor q, const KvLayer& kv, const AttentionPlan& plan,
                 const AttentionSpec& spec) override {
    time(OpTimes::attention, [&] { ops_->attention(o, q, kv, plan, spec); });
  }
  void route(Route& route, Tensor scores, const Routing& routing) override {
    time(OpTimes::route, [&] { ops_->route(route, scores, routing); });
  }
  void group(Route& route, const LoraPlan& plan) override {
    time(OpTimes::route, [&] { ops_->group(route, plan); });
  }
  void gather(Tensor y, Tensor x, Tensor index) override {
    time(OpTimes::route, [&] { ops_->gather(y, x, index); });
  }
  void dispatch(Route& route, Tensor y, Tensor x, Tensor scores, const Routing& routing,
                const LoraPlan& plan) override {
    time(OpTimes::route, [&] { ops_->dispatch(route, y, x, scores, routing, plan); });
  }
  void glu(Tensor y, Tensor gu, Activation activation) override {
    time(OpTimes::glu, [&] { ops_->glu(y, gu, activation); });
  }
  void combine(Tensor y, Tensor d, const Route& route) override {
    time(OpTimes::add, [&] { ops_->combine(y, d, route); });
  }
  void add(Tensor x, std::span<const Tensor> parts) override {
    time(OpTimes::add, [&] { ops_->add(x, parts); });
  }
  void add_norm(Tensor y, Tensor x, std::span<const Tensor> parts, const Norm& n) override {
    time(OpTimes::norm, [&] { ops_->add_norm(y, x, parts, n); });
  }
  void combine_norm(Tensor y, Tensor x, Tensor z, Tensor d, const Route& route,
                    const Norm& n) override {
    time(OpTimes::norm, [&] { ops_->combine_norm(y, x, z, d, route, n); });
  }
  void add_silu(Tensor y, Tensor x, Tensor v, Tensor bias) override {
    time(OpTimes::glu, [&] { ops_->add_silu(y, x, v, bias); });
  }

 private:
  template <class F>
  void time(OpTimes::Op op, F&& f) {
    const auto start = std::chrono::steady_clock::now();
    f();
    const std::chrono::nanoseconds spent = std::chrono::steady_clock::now() - start;
    std::atomic<int64_t>& sum = times_.ns[op];
    sum.store(sum.load(std::memory_order_relaxed) + spent.count(), std::memory_order_relaxed);
  }

  const std::unique_ptr<Ops> ops_;
  OpTimes& times_;
};

}  // namespace

std::string_view OpTimes::name(Op op) {
  static constexpr std::array<std::string_view, count> kNames = {
      "embed", "norm", "linear", "adapt", "rope", "attention", "route", "glu", "add"};
  return kNames[op];
}

int64_t OpTimes::total() const {
  int64_t sum = 0;
  for (const auto& n : ns) sum += n.load(std::memory_order_relaxed);
  return sum;
}

std::unique_ptr<Ops> make_timed_ops(std::unique_ptr<Ops> ops, OpTimes& times) {
  return std::make_unique<TimedOps>(std::move(ops), times);
}

}  // namespace lorry
