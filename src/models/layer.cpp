#include "models/layer.h"

#include <cstring>

namespace lorry {

namespace {

AdaptedLinear adapted(const Step& step, const Linear& linear, const Rows& rows) {
  return {linear.w,  rows.groups,     linear.sites, rows.segments,
          step.lora, step.buf.linear, step.buf.lora};
}

}  // namespace

void apply(Step& step, Tensor y, Tensor x, const Linear& linear, const Rows& rows) {
  step.ops.apply(y, x, adapted(step, linear, rows));
}

void apply_best(Step& step, Tensor best, Tensor y, Tensor x, const Linear& linear,
                const Rows& rows) {
  step.ops.apply_best(best, y, x, adapted(step, linear, rows));
}

namespace {

// y, the norm of x, anew for rows whose adapter has a weight of its own.
void patch(Step& step, Tensor y, Tensor x, const SiteNorm& norm, const Rows& rows) {
  if (!step.lora.norms) return;
  for (const LoraSegment& s : rows.segments) {
    const SiteChange* change = step.lora.patch(s, norm.site).change;
    if (change == nullptr) continue;
    Norm own = norm.norm;
    own.weight.data = const_cast<std::byte*>(change->weight);
    const int32_t n = s.end - s.begin;
    step.ops.norm(lorry::rows(y, s.begin, n), lorry::rows(x, s.begin, n), own);
  }
}

// x += what the ranks have made of `part`, and its norm.
void add(Step& step, Tensor part, const SiteNorm* norm) {
  const StepBuffers& b = step.buf;
  const std::span<const Tensor> parts = step.comm.parts(part);
  if (norm == nullptr) return step.ops.add(b.x, parts);
  step.ops.add_norm(b.h, b.x, parts, norm->norm);
  patch(step, b.h, b.x, *norm, step.rows);
}

}  // namespace

void apply(Step& step, Tensor y, Tensor x, const SiteNorm& norm, const Rows& rows) {
  step.ops.norm(y, x, norm.norm);
  patch(step, y, x, norm, rows);
}

void clear(const Ops& ops, Tensor t) {
  const auto bytes = static_cast<size_t>(t.cols() * size_of(t.dtype));
  if (DeviceMemory* memory = ops.memory()) {
    const auto pitch = static_cast<size_t>(t.pitch * size_of(t.dtype));
    return memory->clear(t.data, pitch, bytes, static_cast<size_t>(t.rows()));
  }
  for (int64_t r = 0; r < t.rows(); ++r) {
    std::memset(t.data + r * t.pitch * size_of(t.dtype), 0, bytes);
  }
}

namespace {

uint64_t add_routes(uint64_t hash, const Tensor& expert) {
  for (int64_t r = 0; r < expert.rows(); ++r) {
    for (int64_t j = 0; j < expert.cols(); ++j) {
      hash = (hash ^ static_cast<uint64_t>(expert.row<const int32_t>(r)[j])) * 0x100000001b3U;
    }
  }
  return hash;
}

}  // namespace

void DecoderLayer::attend(Step& step, const KvLayer& kv) const {
  Ops& ops = step.ops;
  const Spec& spec = step.spec;
  StepBuffers& b = step.buf;
  if (spec.attention.heads == 0) return clear(ops, b.y);  // more ranks than heads
  apply(step, b.qkv, b.h, wqkv, step.rows);
  ops.rope_write(kv, b.qkv, spec.qkv_clip, b.cos, b.sin, step.slots, spec.attention);
  ops.attention(b.o, columns(b.qkv, 0, spec.q_dim()), kv, step.attention, spec.attention);
  apply(step, b.y, b.o, wo, step.rows);
}

void DecoderLayer::run_experts(Step& step, const SiteNorm* next) const {
  Ops& ops = step.ops;
  StepBuffers& b = step.buf;
  apply(step, b.scores, b.h, router, step.rows);
  ops.dispatch(b.route, b.hs, b.h, b.scores, step.spec.routing, step.lora);
  if (step.comm.size() > 1 && !b.route.on_device) {
    step.routes = add_routes(step.routes, b.route.expert);
  }
  const Rows by_expert{b.route.groups(), b.route.segments()};
  const int64_t n = b.route.n_rows();
  const Tensor hs = rows(b.hs, 0, n);
  const Tensor both = rows(b.gate_up, 0, n);
  const Tensor act = rows(b.act, 0, n);
  const Tensor out = rows(b.down, 0, n);
  ops.apply_glu(act, both, hs, adapted(step, gate_up, by_expert), step.spec.activation);
  apply(step, out, act, down, by_expert);
  finish(step, out, next);
}

// x += what the experts have made, and its norm.
void DecoderLayer::finish(Step& step, Tensor experts, const SiteNorm* next) {
  const StepBuffers& b = step.buf;
  if (next == nullptr || step.comm.size() > 1) {
    step.ops.combine(b.z, experts, b.route);
    return add(step, b.z, next);
  }
  step.ops.combine_norm(b.h, b.x, b.z, experts, b.route, next->norm);
  patch(step, b.h, b.x, *next, step.rows);
}

void DecoderLayer::forward(Step& step, const KvLayer& kv, const SiteNorm* next) const {
  attend(step, kv);
  add(step, step.buf.y, &ffn_norm);
  run_experts(step, next);
}

}  // namespace lorry
