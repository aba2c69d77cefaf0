// linear, and apply_glu where the activation ends it.
#include "ops/cuda/backend.h"

namespace lorry::cuda {

namespace {

constexpr int64_t kAlign = kTileRowBytes;

int64_t padded(int64_t in) { return div_up(in, kQuantised) * kQuantised; }

}  // namespace

// Of each row: for quantised weights its values as s8, its scale, and the sums of a scale's inputs;
// for others its values in another order.
size_t CudaOps::linear_scratch_bytes(int64_t rows, int64_t in) const {
  if (!has_16_bits()) return 0;
  const int64_t words = 1 + div_up(in, kChunk);
  const int64_t quantised = padded(in) + 4 * words;
  return static_cast<size_t>(std::max(rows * quantised, arranged_bytes(rows, in)) + 2 * kAlign);
}

// The device's part of it, aligned.
std::byte* CudaOps::scratch_of(Call& call, const Tensor& scratch) const {
  const auto at = reinterpret_cast<uintptr_t>(call.out(scratch));
  return reinterpret_cast<std::byte*>((at + kAlign - 1) / kAlign * kAlign);
}

LinearArgs CudaOps::linear_shape(const Tensor& x, const Weight& w) const {
  LinearArgs a{};
  a.act = type();
  a.x_pitch = x.pitch;
  a.plan = plan_of(w);
  a.group_bytes = w.group_bytes;
  a.rows = static_cast<int32_t>(x.rows());
  a.out = static_cast<int32_t>(w.out);
  a.groups = static_cast<int32_t>(w.groups);
  a.processors = processors_;
  return a;
}

LinearArgs CudaOps::linear_args(Call& call, const Tensor& x, const Weight& w,
                                const RowGroups& groups, const Tensor& scratch) const {
  LinearArgs a = linear_shape(x, w);
  a.x = call.in(x);
  a.w = call.in(reinterpret_cast<const unsigned char*>(w.data), w.groups * w.group_bytes);
  a.begin = w.groups == 1 ? nullptr : call.in(groups.begin);
  a.order = call.in(w.order, w.groups * w.in);
  if (is_wide(a, scratch)) {
    a.arranged = reinterpret_cast<unsigned char*>(scratch_of(call, scratch));
  }
  return a;
}

bool CudaOps::is_wide(const LinearArgs& a, const Tensor& scratch) const {
  return has_16_bits() && is_plain_or_fp8(a) && !is_thin(a) && wide_ && scratch.data != nullptr &&
         expected_rows(a) > kFewRows;
}

void CudaOps::linear(Tensor y, Tensor x, const Weight& w, const RowGroups& groups, Tensor scratch) {
  if (x.rows() == 0) return;
  Call call(memory_, staging_);
  LinearArgs a = linear_args(call, x, w, groups, scratch);
  a.y = call.out<float>(y);
  a.y_pitch = y.pitch;
  if (!has_16_bits()) return linear_f32(call.stream(), a);
  if (is_thin(a)) return linear_thin(call.stream(), a);
  if (a.arranged != nullptr) return linear_wide(call.stream(), a);
  if (is_plain_or_fp8(a)) return linear_mma(call.stream(), a);
  linear_quant(call.stream(), quant_args(call, a, scratch));
}

QuantArgs CudaOps::quant_args(Call& call, const LinearArgs& a, const Tensor& scratch) const {
  QuantArgs q{};
  q.linear = a;
  auto at = reinterpret_cast<uintptr_t>(scratch_of(call, scratch));
  q.xq = reinterpret_cast<int8_t*>(at);
  at += static_cast<uintptr_t>(a.rows * padded(a.plan.in));
  q.scale = reinterpret_cast<float*>(at);
  q.sums = reinterpret_cast<int32_t*>(at + static_cast<uintptr_t>(a.rows) * 4);
  q.wide = wide_;
  return q;
}

}  // namespace lorry::cuda
