// linear with a quantised weight: rows of x as the kernels want them, in scratch.
#include "ops/cpu/backend.h"

namespace lorry::cpu {

namespace {

// Rows of an odd number of cache lines do not fall into the same sets of a cache.
int64_t s8_pitch(int64_t in) { return (round_up(in, 64) / 64 | 1) * 64; }
constexpr int64_t kLeastGroup = 32;

}  // namespace

QuantLayout layout_of(const WeightFormat& f, int64_t in) {
  const QuantKind kind = f.kind == WeightFormat::Kind::int8   ? QuantKind::int8
                         : f.kind == WeightFormat::Kind::int4 ? QuantKind::int4
                                                              : QuantKind::fp8;
  return {kind, f.group != 0, f.zeros, in, f.group == 0 ? in : f.group};
}

size_t CpuOps::linear_scratch_bytes(int64_t n, int64_t in) const {
  const int64_t row =
      element() == 2 ? s8_pitch(in) + 4 + 4 * ceil_div(in, kLeastGroup) : in * element();
  return static_cast<size_t>(n * row + 64);
}

// For int8 and int4 with act bf16 or f16. Fills in what `q` has for all rows.
void CpuOps::quantise_rows(QuantArgs& q, Tensor x, const Weight& w, const RowGroups& groups,
                           Tensor scratch) {
  const int64_t pitch = s8_pitch(w.in);
  const int64_t n_scales = scales_of(q.layout);
  const auto at = reinterpret_cast<uintptr_t>(scratch.data);
  auto* values = reinterpret_cast<int8_t*>(scratch.data) +
                 (round_up(static_cast<int64_t>(at), 64) - static_cast<int64_t>(at));
  auto* scales = reinterpret_cast<float*>(values + x.rows() * pitch);
  auto* sums = reinterpret_cast<int32_t*>(scales + x.rows());
  parallel_rows(x.rows(), w.in, [&](int64_t r) {
    act_kernels_.quantise({.x = x.data + r * x.pitch * element(),
                           .order = order_of(w, groups, r),
                           .in = w.in,
                           .group = q.layout.group,
                           .y = values + r * pitch,
                           .y_size = round_up(w.in, 64),
                           .scale = scales + r,
                           .sum = sums + r * n_scales});
  });
  q.x = values;
  q.x_pitch = pitch;
  q.x_scale = scales;
  q.x_sum = sums;
}

// x with the inputs in the order of each row's weight.
Tensor CpuOps::order_rows(Tensor x, const Weight& w, const RowGroups& groups, Tensor scratch) {
  const Tensor y = view(scratch.data, act_, {x.rows(), w.in});
  parallel_rows(x.rows(), w.in, [&](int64_t r) {
    const int32_t* order = order_of(w, groups, r);
    for (int64_t k = 0; k < w.in; ++k) y.row<float>(r)[k] = x.row<const float>(r)[order[k]];
  });
  return y;
}

// Of row r, or null.
const int32_t* CpuOps::order_of(const Weight& w, const RowGroups& groups, int64_t r) {
  if (w.order == nullptr) return nullptr;
  const auto end = std::upper_bound(groups.begin.begin(), groups.begin.end(), r);
  return w.order + (end - groups.begin.begin() - 1) * w.in;
}

void CpuOps::read_quantised(LinearRows& in, Tensor x, const RowGroups& groups, Tensor scratch) {
  QuantArgs& q = in.quant;
  q.layout = layout_of(in.w.format, in.w.in);
  if (act_kernels_.quantise != nullptr && q.layout.kind != QuantKind::fp8) {
    in.quant_kernel = kernels_.quant;
    quantise_rows(q, x, in.w, groups, scratch);
    in.row_bytes = q.x_pitch;
    return;
  }
  in.quant_kernel = act_kernels_.quant_wide;
  if (in.w.order != nullptr) x = order_rows(x, in.w, groups, scratch);
  q.x = x.data;
  q.x_pitch = x.pitch;
  in.row_bytes = x.pitch * element();
}

}  // namespace lorry::cpu
