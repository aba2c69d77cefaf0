// Choosing from rows of scores.
#include "ops/cuda/kernels.h"
#include "ops/cuda/launch.h"

namespace lorry::cuda {

namespace {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / 32;
constexpr uint32_t kBroken = ~0U;
constexpr uint32_t kLowest = 0x007fffffU;  // of -inf

// Numbers in the order of the scores: one for both zeros; of NaN and +inf, which break a row, the
// highest.
LORRY_DEVICE uint32_t rank_of(float x) {
  if (!(x < as_float(0x7f800000U))) return kBroken;
  const uint32_t bits = as_bits(x + 0.0F);
  return (bits >> 31U) != 0 ? ~bits : bits | 0x80000000U;
}

// A score's rank, and ~place: of equal ones the first has the highest.
struct Best {
  uint32_t rank, place;

  LORRY_DEVICE void over_warp() {
    const uint32_t highest = warp_max(rank);
    place = warp_max(rank == highest ? place : 0U);
    rank = highest;
  }
};

// A block a row.
LORRY_KERNEL(kThreads) best_kernel(BestArgs a) {
  begin_kernel();
  Best* of_warps = reinterpret_cast<Best*>(shared_bytes());
  const float* scores = a.scores + int64_t{blockIdx.x} * a.pitch;
  Best best{0, 0};
  constexpr int kAhead = 8;  // loads that do not wait for each other
  for (int64_t first = threadIdx.x; first < a.cols; first += int64_t{kAhead} * kThreads) {
    float x[kAhead];
    LORRY_UNROLL
    for (int i = 0; i < kAhead; ++i) {
      const int64_t c = first + i * kThreads;
      x[i] = c < a.cols ? scores[c] : as_float(0xff800000U);
    }
    LORRY_UNROLL
    for (int i = 0; i < kAhead; ++i) {
      const uint32_t rank = rank_of(x[i]);
      if (rank <= best.rank) continue;
      best = {rank, ~static_cast<uint32_t>(first + i * kThreads)};
    }
  }
  best.over_warp();
  if (lane_index() == 0) of_warps[warp_index()] = best;
  sync_threads();
  if (warp_index() != 0) return;
  best = of_warps[lane_index() % kWarps];
  best.over_warp();
  if (lane_index() != 0) return;
  const bool none = best.rank == kBroken || best.rank == kLowest;
  a.best[blockIdx.x] = none ? -1 : static_cast<int32_t>(~best.place);
}

}  // namespace

void find_best(Stream s, const BestArgs& a) {
  start<BestArgs, best_kernel>("best", {a.rows}, kThreads, kWarps * sizeof(Best), s, a);
}

}  // namespace lorry::cuda
