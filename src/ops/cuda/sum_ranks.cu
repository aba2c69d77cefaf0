// What the ranks' devices have gathered from each other, added up.
#include "ops/cuda/kernels.h"
#include "ops/cuda/launch.h"

namespace lorry::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 1024;

LORRY_KERNEL(kThreads) sum_ranks_kernel(SumRanksArgs a) {
  begin_kernel();
  const int64_t step = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < a.n; i += step) {
    float sum = a.all[i];
    for (int32_t r = 1; r < a.ranks; ++r) sum += a.all[r * a.n + i];
    a.y[i] = sum;
  }
}

}  // namespace

void sum_ranks(Stream s, const SumRanksArgs& a) {
  const int64_t blocks = ceil_div(a.n, kThreads);
  start<SumRanksArgs, sum_ranks_kernel>("sum_ranks", {blocks < kMostBlocks ? blocks : kMostBlocks},
                                        kThreads, 0, s, a);
}

}  // namespace lorry::cuda
