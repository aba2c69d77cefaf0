// linear.
#include "ops/cuda/backend.h"

namespace lorry::cuda {

namespace {

constexpr int64_t kAlign = 16;

int64_t padded(int64_t in) { return div_up(in, kChunk) * kChunk; }

}  // namespace

// Of each row: its values as s8, its scale, and the sums of a scale's inputs.
size_t CudaOps::linear_scratch_bytes(int64_t rows, int64_t in) const {
  if (!bf16()) return 0;
  const int64_t words = 1 + div_up(in, kChunk);
  return static_cast<size_t>(rows * (padded(in) + 4 * words) + 2 * kAlign);
}

void CudaOps::linear(Tensor y, Tensor x, const Weight& w, const RowGroups& groups, Tensor scratch) {
  if (x.rows() == 0) return;
  Call call(memory_, staging_);
  LinearArgs a{};
  a.y = call.out<float>(y);
  a.y_pitch = y.pitch;
  a.x = call.in(x);
  a.x_pitch = x.pitch;
  a.w = call.in(reinterpret_cast<const unsigned char*>(w.data), w.groups * w.group_bytes);
  a.plan = plan_of(w);
  a.group_bytes = w.group_bytes;
  a.begin = w.groups == 1 ? nullptr : call.in(groups.begin);
  a.order = call.in(w.order, w.groups * w.in);
  a.rows = static_cast<int32_t>(x.rows());
  a.out = static_cast<int32_t>(w.out);
  a.groups = static_cast<int32_t>(w.groups);
  if (!bf16()) return linear_f32(call.stream(), a);
  if (a.plan.values == Values::bf16 || a.plan.values == Values::fp8) {
    return linear_bf16(call.stream(), a);
  }
  QuantArgs q{};
  q.linear = a;
  auto at = reinterpret_cast<uintptr_t>(call.out(scratch));
  at = (at + kAlign - 1) / kAlign * kAlign;
  q.xq = reinterpret_cast<int8_t*>(at);
  at += static_cast<uintptr_t>(a.rows * padded(w.in));
  q.scale = reinterpret_cast<float*>(at);
  q.sums = reinterpret_cast<int32_t*>(at + static_cast<uintptr_t>(a.rows) * 4);
  linear_quant(call.stream(), q);
}

}  // namespace lorry::cuda
