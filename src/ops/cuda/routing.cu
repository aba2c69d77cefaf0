// route and group: which experts a row takes, and the rows of each expert side by side.
#include "ops/cuda/kernels.h"
#include "ops/cuda/launch.h"
#include "ops/cuda/route_row.h"

namespace lorry::cuda {

namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kScanThreads = 256;

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

// What choices are sorted by: (group, adapter), then their number; those of other ranks' experts
// have no place. Adapters are of the batch, so fewer than its rows.
constexpr int kAdapterBits = 20;
constexpr uint32_t kNoAdapter = (uint32_t{1} << kAdapterBits) - 1;  // comes last
constexpr uint32_t kNoPlace = INT32_MAX;
static_assert(int64_t{kMaxExperts + 1} << kAdapterBits < int64_t{kNoPlace});
LORRY_DEVICE uint32_t first_key(int32_t group) {
  return static_cast<uint32_t>(group) << kAdapterBits;
}
LORRY_DEVICE uint32_t key_of(const GroupArgs& a, int32_t row, int32_t j) {
  const int32_t group = a.expert[row * a.expert_pitch + j] - a.first_own;
  // Loaded in any case: a branch would make the next loads wait.
  const bool adapters = a.row_adapter != nullptr;
  const int32_t loaded = (adapters ? a.row_adapter : a.expert)[row];
  const int32_t adapter = adapters ? loaded : -1;
  if (group < 0 || group >= a.groups) return kNoPlace;
  return first_key(group) + (adapter < 0 ? kNoAdapter : static_cast<uint32_t>(adapter));
}
// Choice c comes before the one with number `at` where its key is below this.
LORRY_DEVICE uint32_t limit_of(uint32_t key, int32_t at, int32_t c) {
  return key + (c < at ? 1 : 0);
}

// Entries of the lists: of the choices, then of where groups begin.
struct Entry {
  int32_t at;  // number of the choice; of where a group begins 0
  uint32_t key;
};
LORRY_DEVICE Entry entry_of(const GroupArgs& a, int32_t n) {
  const int32_t choices = a.rows * a.k;
  if (n < choices) return {n, key_of(a, n / a.k, n % a.k)};
  return {0, first_key(n - choices <= a.groups ? n - choices : a.groups)};
}
// before: how many choices come before the entry.
LORRY_DEVICE void put_entry(const GroupArgs& a, int32_t n, uint32_t key, int32_t before) {
  const int32_t choices = a.rows * a.k;
  if (n > choices + a.groups) return;
  if (n >= choices) {
    a.begin[n - choices] = before;
    return;
  }
  const int32_t slot = key == kNoPlace ? -1 : before;
  a.slot[n / a.k * a.slot_pitch + n % a.k] = slot;
  if (slot >= 0) a.source[slot] = n / a.k;
}

constexpr int kGroupWarps = 16;
constexpr int kGroupThreads = 32 * kGroupWarps;
constexpr int kOwnKeys = 8;  // of a thread, loaded together
constexpr int kStage = kOwnKeys * kGroupThreads;

// keys [kStage] of the choices from `first` on, by the block.
LORRY_DEVICE void stage_keys(uint32_t* keys, const GroupArgs& a, int32_t first) {
  const auto thread = static_cast<int32_t>(threadIdx.x);
  int32_t row = (first + thread) / a.k;
  int32_t j = (first + thread) % a.k;
  const int32_t rows_on = kGroupThreads / a.k;
  const int32_t on = kGroupThreads % a.k;
  uint32_t key[kOwnKeys];
  LORRY_UNROLL
  for (int i = 0; i < kOwnKeys; ++i) {
    key[i] = key_of(a, row < a.rows ? row : a.rows - 1, j);
    if (row >= a.rows) key[i] = kNoPlace;
    row += rows_on;
    j += on;
    if (j < a.k) continue;
    j -= a.k;
    ++row;
  }
  LORRY_UNROLL
  for (int i = 0; i < kOwnKeys; ++i) keys[i * kGroupThreads + thread] = key[i];
}

// key < limit, which have 31 bits, by their difference's sign.
LORRY_DEVICE uint32_t is_below(uint32_t key, uint32_t limit) { return (key - limit) >> 31; }

// How many of 32 keys are below limit(number of it).
template <class F>
LORRY_DEVICE uint32_t count_below(const uint32_t* keys, F&& limit) {
  uint32_t below = 0;
  LORRY_UNROLL
  for (int c = 0; c < 32; c += 4) {
    const Word4 key = *reinterpret_cast<const Word4*>(keys + c);
    below += is_below(key.x, limit(c));
    below += is_below(key.y, limit(c + 1));
    below += is_below(key.z, limit(c + 2));
    below += is_below(key.w, limit(c + 3));
  }
  return below;
}

// A block has 32 entries, one a lane; its warps count all choices for them, each some of them.
// Quadratic, and without an order of its own to depend on. Shared memory: kStage keys, then
// [kGroupWarps][32] counts.
LORRY_KERNEL(kGroupThreads) group_kernel(GroupArgs a) {
  begin_kernel();
  auto* keys = reinterpret_cast<uint32_t*>(shared_bytes());
  uint32_t* counts = keys + kStage;
  const int32_t choices = a.rows * a.k;
  const auto first_own = static_cast<int32_t>(32 * blockIdx.x);
  const int32_t own = first_own + lane_index();
  const Entry e = entry_of(a, own);
  uint32_t before = 0;
  for (int32_t stage = 0; stage < choices; stage += kStage) {
    sync_threads();  // the last ones have been read
    stage_keys(keys, a, stage);
    sync_threads();
    const int32_t n = choices - stage < kStage ? choices - stage : kStage;
    for (int32_t c = 32 * warp_index(); c < n; c += kGroupThreads) {
      const int32_t first = stage + c;
      if (first == first_own) {
        before += count_below(keys + c, [&](int i) { return limit_of(e.key, e.at, first + i); });
      } else {  // all 32 come before the entries, or behind them
        const uint32_t limit = limit_of(e.key, e.at, first);
        before += count_below(keys + c, [&](int) { return limit; });
      }
    }
  }
  counts[threadIdx.x] = before;
  sync_threads();
  if (warp_index() > 0) return;
  for (int w = 1; w < kGroupWarps; ++w) before += counts[32 * w + lane_index()];
  put_entry(a, own, e.key, static_cast<int32_t>(before));
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

// A row of x to one of y, by a block. What the threads have in registers is on its way while it is
// found out where it goes.
template <class Word>
struct CopiedRow {
  static constexpr int kHeld = 3;
  const Word* from;
  int64_t n;
  Word held[kHeld];

  LORRY_DEVICE CopiedRow(const unsigned char* row, int64_t bytes)
      : from(reinterpret_cast<const Word*>(row)), n(bytes / int64_t{sizeof(Word)}) {
    LORRY_UNROLL
    for (int i = 0; i < kHeld; ++i) held[i] = from[at(i) < n ? at(i) : 0];
  }
  LORRY_DEVICE static int64_t at(int i) { return int64_t{i} * kScanThreads + threadIdx.x; }
  LORRY_DEVICE void store(unsigned char* row) const {
    auto* to = reinterpret_cast<Word*>(row);
    LORRY_UNROLL
    for (int i = 0; i < kHeld; ++i) {
      if (at(i) < n) to[at(i)] = held[i];
    }
    for (int64_t i = at(kHeld); i < n; i += kScanThreads) to[i] = from[i];
  }
};

// The place of choice `at`, by a block of as many threads as there may be choices.
LORRY_DEVICE int32_t place_by_block(const uint32_t* keys, int32_t n, int32_t at, int* sums) {
  static_assert(kFewChoices <= kScanThreads);
  const auto c = static_cast<int32_t>(threadIdx.x);
  const bool before = c < n && keys[c] < limit_of(keys[at], at, c);
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
  auto* keys = reinterpret_cast<uint32_t*>(shared_bytes());
  auto* expert = reinterpret_cast<int32_t*>(keys + choices);
  auto* weight = reinterpret_cast<float*>(expert + choices);
  auto* sums = reinterpret_cast<int*>(weight + choices);
  const auto at = static_cast<int32_t>(blockIdx.x);
  const int32_t own = at < choices ? at / k : 0;
  const CopiedRow<Word> x(a.rows.x + own * a.rows.x_pitch, a.rows.bytes);
  route_rows(a.route, 0, a.route.rows, reinterpret_cast<float*>(sums + kScanThreads / 32),
             [&](int64_t row) { return Chosen{expert + row * k, weight + row * k}; });
  sync_threads();
  GroupArgs g = a.group;
  g.expert = expert;
  g.expert_pitch = k;
  for (auto c = static_cast<int32_t>(threadIdx.x); c < choices; c += kScanThreads) {
    keys[c] = key_of(g, c / k, c % k);
  }
  sync_threads();
  if (at < choices) {
    if (keys[at] == kNoPlace) return;
    const int64_t place = place_by_block(keys, choices, at, sums);
    return x.store(a.rows.y + place * a.rows.y_pitch);
  }
  for (auto i = static_cast<int32_t>(threadIdx.x); i < choices; i += kScanThreads) {
    a.route.expert[i / k * a.route.expert_pitch + i % k] = expert[i];
    a.route.weight[i / k * a.route.weight_pitch + i % k] = weight[i];
  }
  for (auto i = static_cast<int32_t>(threadIdx.x); i < choices + g.groups + 1; i += kScanThreads) {
    const Entry e = entry_of(g, i);
    int32_t before = 0;
    for (int32_t c = 0; c < choices; ++c) before += keys[c] < limit_of(e.key, e.at, c) ? 1 : 0;
    put_entry(g, i, e.key, before);
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
  const int64_t entries = int64_t{a.rows} * a.k + a.groups + 1;
  constexpr size_t kKeysShared = (kStage + kGroupThreads) * sizeof(uint32_t);
  start<GroupArgs, group_kernel>("group", {ceil_div(entries, 32)}, kGroupThreads, kKeysShared, s,
                                 a);
  if (a.max_segments == 0) return;
  constexpr size_t kShared = kScanThreads / 32 * sizeof(int);
  start<GroupArgs, segments_kernel>("segments", {1}, kScanThreads, kShared, s, a);
}

void dispatch(Stream s, const DispatchArgs& a) {
  const int64_t choices = int64_t{a.route.rows} * a.route.k;
  const int64_t routed = rows_at_once(a.route.experts, kScanThreads / 32);
  const auto shared =
      static_cast<size_t>(3 * choices + kScanThreads / 32 + routed * a.route.experts) *
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
