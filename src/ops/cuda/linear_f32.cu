// linear with x in f32: one sum in order of k for each output. For exactness; it is not fast.
#include "ops/cuda/kernels.h"
#include "ops/cuda/launch.h"
#include "ops/cuda/value_at.h"

namespace lorry::cuda {

namespace {

constexpr int kThreads = 128;
constexpr int kRows = 4;  // of a thread

// grid: outputs, groups, row tiles.
LORRY_KERNEL(kThreads) linear_f32_kernel(LinearArgs a) {
  begin_kernel();
  const auto group = static_cast<int>(blockIdx.y);
  const int32_t begin = a.begin == nullptr ? 0 : a.begin[group];
  const int32_t end = a.begin == nullptr ? a.rows : a.begin[group + 1];
  const int64_t column = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (column >= a.out) return;
  const unsigned char* block =
      a.w + group * a.group_bytes + column / kRowBlock * a.plan.block_bytes();
  const auto row = static_cast<int>(column % kRowBlock);
  const int32_t* order = a.order == nullptr ? nullptr : a.order + int64_t{group} * a.plan.in;
  const float scale = a.plan.values == Values::fp8
                          ? reinterpret_cast<const float*>(block + a.plan.scales_offset())[row]
                          : 1.0F;
  const auto* x = static_cast<const float*>(a.x);
  for (int64_t r = begin + int64_t{kRows} * blockIdx.z; r < end; r += int64_t{kRows} * gridDim.z) {
    float sum[kRows] = {};
    const auto n = static_cast<int>(end - r < kRows ? end - r : kRows);
    for (int k = 0; k < a.plan.in; ++k) {
      const float w = value_at(a.plan, block, row, k);
      const int from = order == nullptr ? k : order[k];
      for (int i = 0; i < n; ++i) sum[i] = fmaf(x[(r + i) * a.x_pitch + from], w, sum[i]);
    }
    for (int i = 0; i < n; ++i) a.y[(r + i) * a.y_pitch + column] = sum[i] * scale;
  }
}

}  // namespace

void linear_f32(Stream s, const LinearArgs& a) {
  const int64_t tiles = ceil_div(a.rows, kRows);
  const Grid grid{ceil_div(a.out, kThreads), a.groups, tiles < 1024 ? tiles : 1024};
  start<LinearArgs, linear_f32_kernel>("linear_f32", grid, kThreads, 0, s, a);
}

}  // namespace lorry::cuda
