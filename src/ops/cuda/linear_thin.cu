// linear with x in bf16 for a handful of outputs, which would leave most of the device idle: many
// warps share the inputs of 16 outputs.
#include "ops/cuda/groups.h"
#include "ops/cuda/kernels.h"
#include "ops/cuda/launch.h"
#include "ops/cuda/rows_times.h"

namespace lorry::cuda {

namespace {

constexpr int kWarps = 16;
constexpr int kThreads = 32 * kWarps;
constexpr int kRows = 8;

// grid: row tiles, row blocks, groups.
template <class Load>
LORRY_KERNEL(kThreads)
thin_kernel(LinearArgs a) {
  let_next_start();
  constexpr int kLine = 128;
  const auto group = static_cast<int>(blockIdx.z);
  const unsigned char* w =
      a.w + group * a.group_bytes + blockIdx.y * a.plan.block_bytes();
  for (int64_t at = int64_t{threadIdx.x} * kLine; at < a.plan.scales_offset();
       at += int64_t{kThreads} * kLine) {
    prefetch(w + at);
  }
  wait_for_previous();
  auto* shared = reinterpret_cast<float*>(shared_bytes());
  const Rows rows = rows_of(a, group);
  const auto step = static_cast<int32_t>(kRows * gridDim.x);
  for (int32_t first = rows.begin + static_cast<int32_t>(kRows * blockIdx.x); first < rows.end;
       first += step) {
    const XRows<1> x(a.x, a.x_pitch, first, rows.end, a.plan.in);
    const float total = sum_by_warps<kWarps>(
        shared, [&](int chunk) { return Load::load(w + int64_t{chunk} * Load::kBytes); }, x,
        static_cast<int>(a.plan.chunks()));
    const auto at = static_cast<int32_t>(threadIdx.x);
    const int32_t row = first + at / kRowBlock;
    const int64_t column = int64_t{blockIdx.y} * kRowBlock + at % kRowBlock;
    if (at < kRows * kRowBlock && row < rows.end && column < a.out) {
      a.y[row * a.y_pitch + column] = total * scale_of(a.plan, w, at % kRowBlock);
    }
    sync_threads();  // the sums have been read
  }
}

template <class Load>
void multiply(Stream s, const LinearArgs& a) {
  constexpr size_t kShared = sizeof(float) * kWarps * kRows * kRowBlock;
  const Grid grid{ceil_div(expected_rows(a), kRows), ceil_div(a.out, kRowBlock), a.groups};
  start<LinearArgs, thin_kernel<Load>>("linear_thin", grid, kThreads, kShared, s, a);
}

}  // namespace

void linear_thin(Stream s, const LinearArgs& a) {
  if (a.plan.values == Values::fp8) return multiply<LoadFp8>(s, a);
  multiply<LoadBf16>(s, a);
}

}  // namespace lorry::cuda
