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

// Where a row's choices go.
struct Chosen {
  int32_t* expert;
  float* weight;
};

// The larger p, then the lower expert. NaN loses to nothing and beats nothing: the lower expert.
LORRY_DEVICE Choice better(Choice a, Choice b) {
  if (a.expert < 0) return b;
  if (b.expert < 0) return a;
  if (a.p > b.p) return a;
  if (b.p > a.p) return b;
  return a.expert < b.expert ? a : b;
}

// Lanes of a warp that have a row: the others have rows of their own.
constexpr int lanes_of_row(int32_t experts) {
  int lanes = 1;
  while (lanes < experts && lanes < 32) lanes *= 2;
  return lanes;
}
// Rows that the warps of a block route at once.
constexpr int64_t rows_at_once(int32_t experts, int warps) {
  return int64_t{32} / lanes_of_row(experts) * warps;
}

// Of all lanes of a row, in all of them. With fewer lanes than 32 the bits are those of 32: of
// which the others would add nothing.
LORRY_DEVICE float row_sum(float x, int lanes) {
  for (int mask = lanes / 2; mask > 0; mask >>= 1) x += shuffle_xor(x, mask);
  return x;
}
LORRY_DEVICE float row_max(float x, int lanes) {
  for (int mask = lanes / 2; mask > 0; mask >>= 1) {
    const float other = shuffle_xor(x, mask);
    x = other > x || other != other ? other : x;
  }
  return x;
}
LORRY_DEVICE Choice best_of_row(Choice c, int lanes) {
  for (int mask = lanes / 2; mask > 0; mask >>= 1) {
    const Choice other{shuffle_xor(c.p, mask), shuffle_xor(c.expert, mask)};
    c = better(c, other);
  }
  return c;
}

// Routes a row by `lanes` lanes; all of a warp call it. p [experts], in shared memory: -1 where one
// was taken. Without a place to put them in, expert and weight are not stored.
LORRY_DEVICE void route_row(const RouteArgs& a, int64_t row, float* p, int lanes, int32_t* expert,
                            float* weight) {
  const float* scores = a.scores + row * a.scores_pitch;
  const int lane = lane_index() % lanes;
  float most = -INFINITY;
  for (int e = lane; e < a.experts; e += lanes) {
    most = scores[e] > most || scores[e] != scores[e] ? scores[e] : most;
  }
  most = row_max(most, lanes);
  float sum = 0;
  for (int e = lane; e < a.experts; e += lanes) {
    p[e] = expf(scores[e] - most);
    sum += p[e];
  }
  sum = row_sum(sum, lanes);
  for (int e = lane; e < a.experts; e += lanes) p[e] = p[e] / sum;
  float total = 0;
  for (int32_t j = 0; j < a.k; ++j) {
    Choice c{0, -1};
    for (int e = lane; e < a.experts; e += lanes) {
      if (p[e] != -1.0F) c = better(c, {p[e], e});
    }
    c = best_of_row(c, lanes);
    if (c.expert % lanes == lane) p[c.expert] = -1.0F;  // its own lane's
    total += a.norm_p == 1.0F ? c.p : powf(c.p, a.norm_p);
    if (lane != 0 || expert == nullptr) continue;
    expert[j] = c.expert;
    weight[j] = c.p;
  }
  if (a.norm_p == 0.0F || lane != 0 || expert == nullptr) return;
  const float length = a.norm_p == 1.0F ? total : powf(total, 1.0F / a.norm_p);
  for (int32_t j = 0; j < a.k; ++j) weight[j] /= length;
}

// Rows first, first + step ... by the warps of a block: f(row) says where row's choices go. p: of
// each row in work, experts.
template <class F>
LORRY_DEVICE void route_rows(const RouteArgs& a, int64_t first, int64_t end, float* p, F&& f) {
  const int lanes = lanes_of_row(a.experts);
  const int together = 32 / lanes;
  const int own = warp_index() * together + lane_index() / lanes;
  const int step = static_cast<int>(blockDim.x) / 32 * together;
  for (int64_t begin = first; begin < end; begin += step) {
    const int64_t row = begin + own;
    const Chosen to = row < end ? f(row) : Chosen{nullptr, nullptr};
    route_row(a, row < end ? row : end - 1, p + own * a.experts, lanes, to.expert, to.weight);
  }
}

// p [rows of a block, experts] in shared memory.
LORRY_KERNEL(kThreads) route_kernel(RouteArgs a) {
  begin_kernel();
  auto* p = reinterpret_cast<float*>(shared_bytes());
  const int64_t rows = rows_at_once(a.experts, kWarps);
  const int64_t first = int64_t{blockIdx.x} * rows;
  const int64_t end = first + rows < a.rows ? first + rows : a.rows;
  route_rows(a, first, end, p, [&](int64_t row) {
    return Chosen{a.expert + row * a.expert_pitch, a.weight + row * a.weight_pitch};
  });
}

LORRY_DEVICE int32_t adapter_of(const GroupArgs& a, int32_t row) {
  const int32_t adapter = a.row_adapter == nullptr ? -1 : a.row_adapter[row];
  return adapter < 0 ? INT32_MAX : adapter;  // rows without one come last
}

LORRY_DEVICE int32_t group_of(const GroupArgs& a, int32_t choice) {
  const int32_t g = a.expert[choice / a.k * a.expert_pitch + choice % a.k] - a.first_own;
  return g >= 0 && g < a.groups ? g : -1;
}

// What choices are sorted by: (group, adapter), then their number; those of other ranks' experts
// have no place.
constexpr uint64_t kNoPlace = ~uint64_t{0};
LORRY_DEVICE uint64_t key_of(const GroupArgs& a, int32_t choice) {
  const int32_t group = group_of(a, choice);
  if (group < 0) return kNoPlace;
  return static_cast<uint64_t>(group) << 32U | static_cast<uint32_t>(adapter_of(a, choice / a.k));
}
LORRY_DEVICE uint64_t first_key(int32_t group) { return static_cast<uint64_t>(group) << 32U; }
// Whether choice c comes before the one with number `at`.
LORRY_DEVICE bool is_before(uint64_t key_of_c, int32_t c, uint64_t key, int32_t at) {
  return key_of_c < key || (key_of_c == key && c < at);
}

// Entry `at` of the lists: of the choices, then of where groups begin. place(key, at): how many
// choices come before.
template <class F>
LORRY_DEVICE void put_entry(const GroupArgs& a, int32_t at, bool write, F&& place) {
  const int32_t choices = a.rows * a.k;
  if (at >= choices) {
    const int32_t begin = place(first_key(at - choices), 0);
    if (write) a.begin[at - choices] = begin;
    return;
  }
  const uint64_t key = key_of(a, at);
  const int32_t slot = key == kNoPlace ? -1 : place(key, at);
  if (!write) return;
  a.slot[at / a.k * a.slot_pitch + at % a.k] = slot;
  if (slot >= 0) a.source[slot] = at / a.k;
}

// A warp an entry. Quadratic, and without an order of its own to depend on.
LORRY_KERNEL(kThreads) group_kernel(GroupArgs a) {
  begin_kernel();
  const int32_t choices = a.rows * a.k;
  const int64_t at = int64_t{blockIdx.x} * kWarps + warp_index();
  if (at >= int64_t{choices} + a.groups + 1) return;
  put_entry(a, static_cast<int32_t>(at), lane_index() == 0, [&](uint64_t key, int32_t number) {
    int before = 0;
    for (int32_t c = lane_index(); c < choices; c += 32) {
      before += is_before(key_of(a, c), c, key, number) ? 1 : 0;
    }
    return warp_sum(before);
  });
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

// Numbers the segments in order, by a block. sums [kScanThreads / 32].
LORRY_DEVICE void put_segments(const GroupArgs& a, int* sums) {
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

LORRY_KERNEL(kScanThreads) segments_kernel(GroupArgs a) {
  begin_kernel();
  put_segments(a, reinterpret_cast<int*>(shared_bytes()));
}

// A row of x to one of y, by a block.
template <class Word>
LORRY_DEVICE void copy_row(unsigned char* to, const unsigned char* from, int64_t bytes) {
  for (int64_t i = threadIdx.x; i < bytes / int64_t{sizeof(Word)}; i += kScanThreads) {
    reinterpret_cast<Word*>(to)[i] = reinterpret_cast<const Word*>(from)[i];
  }
}

// The place of choice `at`, by a block of as many threads as there may be choices.
LORRY_DEVICE int32_t place_by_block(const uint64_t* keys, int32_t n, int32_t at, int* sums) {
  static_assert(kFewChoices <= kScanThreads);
  const auto c = static_cast<int32_t>(threadIdx.x);
  const bool before = c < n && is_before(keys[c], c, keys[at], at);
  const int found = count_bits(ballot(before));
  if (lane_index() == 0) sums[warp_index()] = found;
  sync_threads();
  int32_t all = 0;
  for (int w = 0; w < kScanThreads / 32; ++w) all += sums[w];
  return all;
}

// Few rows: each block routes all of them for itself, and copies the row of one choice; the last
// block writes the lists.
template <class Word>
LORRY_KERNEL(kScanThreads)
dispatch_kernel(DispatchArgs a) {
  begin_kernel();
  const int32_t k = a.route.k;
  const int32_t choices = a.route.rows * k;
  auto* keys = reinterpret_cast<uint64_t*>(shared_bytes());
  auto* expert = reinterpret_cast<int32_t*>(keys + choices);
  auto* weight = reinterpret_cast<float*>(expert + choices);
  auto* sums = reinterpret_cast<int*>(weight + choices);
  route_rows(a.route, 0, a.route.rows, reinterpret_cast<float*>(sums + kScanThreads / 32),
             [&](int64_t row) { return Chosen{expert + row * k, weight + row * k}; });
  sync_threads();
  GroupArgs g = a.group;
  g.expert = expert;
  g.expert_pitch = k;
  for (auto c = static_cast<int32_t>(threadIdx.x); c < choices; c += kScanThreads) {
    keys[c] = key_of(g, c);
  }
  sync_threads();
  const auto at = static_cast<int32_t>(blockIdx.x);
  if (at < choices) {
    if (keys[at] == kNoPlace) return;
    const int64_t place = place_by_block(keys, choices, at, sums);
    return copy_row<Word>(a.rows.y + place * a.rows.y_pitch, a.rows.x + at / k * a.rows.x_pitch,
                          a.rows.bytes);
  }
  for (auto i = static_cast<int32_t>(threadIdx.x); i < choices; i += kScanThreads) {
    a.route.expert[i / k * a.route.expert_pitch + i % k] = expert[i];
    a.route.weight[i / k * a.route.weight_pitch + i % k] = weight[i];
  }
  for (auto i = static_cast<int32_t>(threadIdx.x); i < choices + g.groups + 1; i += kScanThreads) {
    put_entry(g, i, true, [&](uint64_t key, int32_t number) {
      int32_t before = 0;
      for (int32_t c = 0; c < choices; ++c) before += is_before(keys[c], c, key, number) ? 1 : 0;
      return before;
    });
  }
  sync_threads();
  if (g.max_segments > 0) put_segments(g, sums);
}

}  // namespace

void route(Stream s, const RouteArgs& a) {
  const int64_t rows = rows_at_once(a.experts, kWarps);
  const auto shared = static_cast<size_t>(rows * a.experts) * sizeof(float);
  start<RouteArgs, route_kernel>("route", {ceil_div(a.rows, rows)}, kThreads, shared, s, a);
}

void group(Stream s, const GroupArgs& a) {
  const int64_t warps = int64_t{a.rows} * a.k + a.groups + 1;
  start<GroupArgs, group_kernel>("group", {ceil_div(warps, kWarps)}, kThreads, 0, s, a);
  if (a.max_segments == 0) return;
  constexpr size_t kShared = kScanThreads / 32 * sizeof(int);
  start<GroupArgs, segments_kernel>("segments", {1}, kScanThreads, kShared, s, a);
}

void dispatch(Stream s, const DispatchArgs& a) {
  const int64_t choices = int64_t{a.route.rows} * a.route.k;
  const int64_t routed = rows_at_once(a.route.experts, kScanThreads / 32);
  const auto shared =
      static_cast<size_t>(4 * choices + kScanThreads / 32 + routed * a.route.experts) *
      sizeof(float);
  const auto all = reinterpret_cast<uintptr_t>(a.rows.x) | reinterpret_cast<uintptr_t>(a.rows.y) |
                   static_cast<uintptr_t>(a.rows.x_pitch | a.rows.y_pitch | a.rows.bytes);
  if (all % sizeof(Word4) == 0) {
    return start<DispatchArgs, dispatch_kernel<Word4>>("dispatch", {choices + 1}, kScanThreads,
                                                       shared, s, a);
  }
  start<DispatchArgs, dispatch_kernel<uint16_t>>("dispatch", {choices + 1}, kScanThreads, shared, s,
                                                 a);
}

}  // namespace lorry::cuda
