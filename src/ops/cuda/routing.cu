// route and group: which experts a row takes, and the rows of each expert side by side.
#include "ops/cuda/kernels.h"
#include "ops/cuda/launch.h"

namespace lorry::cuda {

namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kScanThreads = 256;

struct Choice {
  float p;
  int expert;  // -1: none
};

// The larger p, then the lower expert. NaN loses to nothing and beats nothing: the lower expert.
LORRY_DEVICE Choice better(Choice a, Choice b) {
  if (a.expert < 0) return b;
  if (b.expert < 0) return a;
  if (a.p > b.p) return a;
  if (b.p > a.p) return b;
  return a.expert < b.expert ? a : b;
}

LORRY_DEVICE Choice best_of_warp(Choice c) {
  for (int mask = 16; mask > 0; mask >>= 1) {
    const Choice other{shuffle_xor(c.p, mask), shuffle_xor(c.expert, mask)};
    c = better(c, other);
  }
  return c;
}

// A warp a row. p [experts] in shared memory; -1 where one was taken.
LORRY_KERNEL(kThreads) route_kernel(RouteArgs a) {
  begin_kernel();
  float* p = reinterpret_cast<float*>(shared_bytes()) + warp_index() * a.experts;
  const int64_t row = int64_t{blockIdx.x} * kWarps + warp_index();
  if (row >= a.rows) return;
  const float* scores = a.scores + row * a.scores_pitch;
  float most = -INFINITY;
  for (int e = lane_index(); e < a.experts; e += 32) {
    most = scores[e] > most || scores[e] != scores[e] ? scores[e] : most;
  }
  most = warp_max(most);
  float sum = 0;
  for (int e = lane_index(); e < a.experts; e += 32) {
    p[e] = expf(scores[e] - most);
    sum += p[e];
  }
  sum = warp_sum(sum);
  for (int e = lane_index(); e < a.experts; e += 32) p[e] = p[e] / sum;
  int32_t* expert = a.expert + row * a.expert_pitch;
  float* weight = a.weight + row * a.weight_pitch;
  float total = 0;
  for (int32_t j = 0; j < a.k; ++j) {
    Choice c{0, -1};
    for (int e = lane_index(); e < a.experts; e += 32) {
      if (p[e] != -1.0F) c = better(c, {p[e], e});
    }
    c = best_of_warp(c);
    if (c.expert % 32 == lane_index()) p[c.expert] = -1.0F;  // its own lane's
    total += a.norm_p == 1.0F ? c.p : powf(c.p, a.norm_p);
    if (lane_index() != 0) continue;
    expert[j] = c.expert;
    weight[j] = c.p;
  }
  if (a.norm_p == 0.0F || lane_index() != 0) return;
  const float length = a.norm_p == 1.0F ? total : powf(total, 1.0F / a.norm_p);
  for (int32_t j = 0; j < a.k; ++j) weight[j] /= length;
}

LORRY_DEVICE int32_t adapter_of(const GroupArgs& a, int32_t row) {
  const int32_t adapter = a.row_adapter == nullptr ? -1 : a.row_adapter[row];
  return adapter < 0 ? INT32_MAX : adapter;  // rows without one come last
}

LORRY_DEVICE int32_t group_of(const GroupArgs& a, int32_t choice) {
  const int32_t g = a.expert[choice / a.k * a.expert_pitch + choice % a.k] - a.first_own;
  return g >= 0 && g < a.groups ? g : -1;
}

// A warp counts what comes before one choice, or before a group: that is its place. Quadratic, and
// without an order of its own to depend on.
LORRY_KERNEL(kThreads) group_kernel(GroupArgs a) {
  begin_kernel();
  const int32_t choices = a.rows * a.k;
  const int64_t at = int64_t{blockIdx.x} * kWarps + warp_index();
  if (at >= int64_t{choices} + a.groups + 1) return;
  const bool is_choice = at < choices;
  const auto choice = static_cast<int32_t>(at);
  const int32_t group = is_choice ? group_of(a, choice) : choice - choices;
  if (is_choice && group < 0) {
    if (lane_index() == 0) a.slot[choice / a.k * a.slot_pitch + choice % a.k] = -1;
    return;
  }
  const int32_t row = choice / a.k;
  const int32_t adapter = is_choice ? adapter_of(a, row) : 0;
  int before = 0;
  for (int32_t c = lane_index(); c < choices; c += 32) {
    const int32_t g = group_of(a, c);
    if (g < 0 || g > group) continue;
    bool less = g < group;
    if (!less && is_choice) {
      const int32_t other = adapter_of(a, c / a.k);
      less = other < adapter || (other == adapter && c < choice);
    }
    before += less ? 1 : 0;
  }
  before = warp_sum(before);
  if (lane_index() != 0) return;
  if (!is_choice) {
    a.begin[group] = before;
    return;
  }
  a.slot[row * a.slot_pitch + choice % a.k] = before;
  a.source[before] = row;
}

// The last group that begins at or before a sorted row.
LORRY_DEVICE int32_t group_at(const GroupArgs& a, int32_t sorted) {
  int32_t low = 0;
  int32_t high = a.groups;
  while (high - low > 1) {
    const int32_t middle = (low + high) / 2;
    (a.begin[middle] <= sorted ? low : high) = middle;
  }
  return low;
}

LORRY_DEVICE int scan_warp(int x) {  // inclusive
  for (int by = 1; by < 32; by <<= 1) {
    const int other = shuffle_up(x, by);
    if (lane_index() >= by) x += other;
  }
  return x;
}

// One block numbers the segments in order.
LORRY_KERNEL(kScanThreads) segments_kernel(GroupArgs a) {
  begin_kernel();
  int* sums = reinterpret_cast<int*>(shared_bytes());
  const int32_t n = a.begin[a.groups];
  int done = 0;
  for (int32_t first = 0; first < n; first += kScanThreads) {
    const int32_t i = first + static_cast<int32_t>(threadIdx.x);
    int32_t adapter = INT32_MAX;
    int32_t group = 0;
    bool starts = false;
    bool ends = false;
    if (i < n) {
      adapter = adapter_of(a, a.source[i]);
      group = group_at(a, i);
      const bool has = adapter != INT32_MAX;
      starts = has && (i == a.begin[group] || adapter_of(a, a.source[i - 1]) != adapter);
      ends = has && (i + 1 == a.begin[group + 1] || adapter_of(a, a.source[i + 1]) != adapter);
    }
    const int within = scan_warp(starts ? 1 : 0);
    sync_threads();
    if (lane_index() == 31) sums[warp_index()] = within;
    sync_threads();
    int number = done + within - 1;
    for (int w = 0; w < kScanThreads / 32; ++w) {
      if (w < warp_index()) number += sums[w];
      done += sums[w];
    }
    if (starts) {
      a.segments[number].begin = i;
      a.segments[number].adapter = adapter;
      a.segments[number].group = group;
    }
    if (ends) a.segments[number].end = i + 1;
  }
  for (int32_t i = done + static_cast<int32_t>(threadIdx.x); i < a.max_segments;
       i += kScanThreads) {
    a.segments[i] = {n, n, 0, 0};
  }
  if (threadIdx.x == 0) *a.n_segments = done;
}

}  // namespace

void route(Stream s, const RouteArgs& a) {
  const auto shared = static_cast<size_t>(kWarps * a.experts) * sizeof(float);
  start<RouteArgs, route_kernel>("route", {ceil_div(a.rows, kWarps)}, kThreads, shared, s, a);
}

void group(Stream s, const GroupArgs& a) {
  const int64_t warps = int64_t{a.rows} * a.k + a.groups + 1;
  start<GroupArgs, group_kernel>("group", {ceil_div(warps, kWarps)}, kThreads, 0, s, a);
  if (a.max_segments == 0) return;
  constexpr size_t kShared = kScanThreads / 32 * sizeof(int);
  start<GroupArgs, segments_kernel>("segments", {1}, kScanThreads, kShared, s, a);
}

}  // namespace lorry::cuda
