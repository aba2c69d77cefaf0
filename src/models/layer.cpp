#include "models/layer.h"

namespace lorry {

void apply(Step& step, Tensor y, Tensor x, const Linear& linear, const Rows& rows) {
  step.ops.linear(y, x, linear.w, rows.groups, step.buf.linear);
  if (rows.segments.empty()) return;
  step.ops.adapt(y, x, linear.sites, rows.segments, step.lora, step.buf.lora);
}

void apply(Step& step, Tensor y, Tensor x, const SiteNorm& norm, const Rows& rows) {
  step.ops.norm(y, x, norm.norm);
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

void DecoderLayer::forward(Step& step, const KvLayer& kv) const {
  Ops& ops = step.ops;
  const Spec& spec = step.spec;
  StepBuffers& b = step.buf;
  const Tensor q = columns(b.qkv, 0, spec.q_dim());
  const Tensor k = columns(b.qkv, spec.q_dim(), spec.kv_dim());
  const Tensor v = columns(b.qkv, spec.q_dim() + spec.kv_dim(), spec.kv_dim());

  apply(step, b.h, b.x, attn_norm, step.rows);
  apply(step, b.qkv, b.h, wqkv, step.rows);
  ops.clamp(b.qkv, spec.qkv_clip);
  ops.rope(q, b.cos, b.sin);
  ops.rope(k, b.cos, b.sin);
  ops.kv_write(kv, k, v, step.slots, spec.attention);
  ops.attention(b.o, q, kv, step.attention, spec.attention);
  apply(step, b.y, b.o, wo, step.rows);
  step.comm.all_reduce(b.y);
  ops.add(b.x, b.y);

  apply(step, b.h, b.x, ffn_norm, step.rows);
  apply(step, b.scores, b.h, router, step.rows);
  ops.route(b.route, b.scores, spec.routing);
  ops.group(b.route, step.lora);
  const Rows by_expert{b.route.groups(), b.route.segments()};
  ops.gather(b.hs, b.h, b.route.source);
  apply(step, b.gate_up, b.hs, gate_up, by_expert);
  ops.glu(b.act, b.gate_up, spec.activation);
  apply(step, b.down, b.act, down, by_expert);
  ops.combine(b.y, b.down, b.route);
  step.comm.all_reduce(b.y);
  ops.add(b.x, b.y);
}

}  // namespace lorry
