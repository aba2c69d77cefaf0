// adapt, the pairs: t = scale * A x.
#include "ops/cuda/bulk.h"
#include "ops/cuda/kernels.h"
#include "ops/cuda/launch.h"
#include "ops/cuda/rows_times.h"
#include "ops/cuda/segments.h"

namespace lorry::cuda {

namespace {

// Warps of a block of a shrink by kShares blocks: few enough for a linear's blocks to find room
// beside them.
template <int kShares>
constexpr int kShrinkWarps = kShares == 1 ? 8 : kParts / kShares;

// 16 ranks of A at once; those beyond the pair's are zero.
LORRY_DEVICE Tiles load_ranks(const unsigned char* a, bool second, int block_bytes) {
  const auto* low = reinterpret_cast<const Word2*>(a) + lane_index();
  const auto* high = reinterpret_cast<const Word2*>(a + block_bytes) + lane_index();
  Tiles tiles;
  LORRY_UNROLL
  for (int t = 0; t < 2; ++t) {
    const Word2 rows = low[32 * t];
    const Word2 more = second ? high[32 * t] : Word2{0, 0};
    tiles.t[t] = {rows.x, more.x, rows.y, more.y};
  }
  return tiles;
}

// What the blocks of a cluster work on: 16 ranks of a site, of one segment of a tile.
struct ShrinkTask {
  int32_t tile, slot;
  int site, rank;
  int share;  // which block of the cluster this is
};
template <int kShares>
LORRY_DEVICE ShrinkTask task_of(const AdaptArgs& a) {
  const auto x = static_cast<int32_t>(blockIdx.x);
  const auto y = static_cast<int32_t>(blockIdx.y);
  return {x / kShares, static_cast<int32_t>(blockIdx.z), y % a.sites, y / a.sites * 16,
          x % kShares};
}

constexpr int kLine = 128;  // bytes that are brought near together

// Of shared memory: the sums of parts, then, of a cluster, the barrier that waits for them.
constexpr size_t kShrinkShared = kPartsShared + sizeof(Barrier);

// B, if it is small: a linear of few rows adds it within microseconds. `nth` of n threads.
LORRY_DEVICE void prefetch_b(const Patch& patch, int out, int nth, int n) {
  constexpr int64_t kMost = int64_t{1} << 20;
  const int64_t bytes = (int64_t{out} + kPanelB - 1) / kPanelB * kPanelB * patch.rank * 2;
  if (bytes > kMost) return;
  for (int64_t at = int64_t{nth} * kLine; at < bytes; at += int64_t{n} * kLine) {
    prefetch(static_cast<const unsigned char*>(patch.b) + at);
  }
}

// 16 ranks of A.
struct RanksOfA {
  static constexpr int kBytes = kRankBlock * kChunk * 2;  // of a chunk of kRankBlock ranks
  const unsigned char* w;
  int chunks;
  bool second;  // the second kRankBlock of them are there

  LORRY_DEVICE RanksOfA(const Patch& patch, int rank, int in)
      : chunks((in + kChunk - 1) / kChunk), second(rank + kRankBlock < patch.rank) {
    w = static_cast<const unsigned char*>(patch.a) + int64_t{rank / kRankBlock} * chunks * kBytes;
  }
  LORRY_DEVICE Tiles load(int chunk) const {
    return load_ranks(w + int64_t{chunk} * kBytes, second, chunks * kBytes);
  }
  // Of a warp that sums each kWarps-th part: what it does not load at once.
  template <int kWarps, int kAhead>
  LORRY_DEVICE void prefetch_rest(int warp) const {
    for (int p = warp; p < kParts; p += kWarps) {
      const int first = part_begin(chunks, p) + (p == warp ? kAhead : 0);
      const int end = part_begin(chunks, p + 1) * kBytes;
      for (int at = first * kBytes + lane_index() * kLine; at < end; at += 32 * kLine) {
        prefetch(w + at);
        if (second) prefetch(w + chunks * kBytes + at);
      }
    }
  }
};

// All of a cluster come here or none. The first block's barrier waits for all parts; the others
// send theirs when wait_cluster has told them that it is there, and need not stay: nobody sends to
// them.
LORRY_DEVICE void begin_sums(Barrier* arrived, int share) {
  if (share == 0 && threadIdx.x == 0) {
    init_barrier(arrived, 1);
    publish_barriers();
    arrive_and_expect(arrived, kPartsShared);
  }
  sync_warp();
  arrive_cluster();
}

// t of 16 ranks at a site. wait(): from there on x can be read, and t written.
template <class T, int kShares, class Wait>
LORRY_DEVICE void shrink_rows(const AdaptArgs& a, const TileRows& rows, const Patch& patch,
                              const ShrinkTask& task, Wait&& wait) {
  constexpr int kAhead = kShares == 1 ? 6 : 10;            // as many as registers hold
  constexpr int kWarps = kShares * kShrinkWarps<kShares>;  // of the cluster
  static_assert(kShares == 1 || kWarps == kParts);
  auto* sums = reinterpret_cast<Word4*>(shared_bytes());
  auto* arrived = reinterpret_cast<Barrier*>(shared_bytes() + kPartsShared);
  if (kShares > 1) begin_sums(arrived, task.share);
  const int out = a.site[task.site].out;
  const RanksOfA ranks(patch, task.rank, a.site[task.site].in);
  const int warp = task.share * kShrinkWarps<kShares> + warp_index();
  sum_parts<T, kWarps, kAhead>(
      warp, [&](int chunk) { return ranks.load(chunk); },
      XRows<1>(a.x, a.x_pitch, rows.begin, rows.end, a.site[task.site].in), ranks.chunks,
      [&] {
        // A warp's loads wait for each other, but only once for the memory.
        if (a.pairs != nullptr) ranks.template prefetch_rest<kWarps, kAhead>(warp);
        if (a.pairs != nullptr && a.early && task.rank == 0) {
          prefetch_b(patch, out, 32 * warp + lane_index(), 32 * kWarps);
        }
        wait();
      },
      [&](int p, const Float4& sum) {
        Word4* to = sums + p * 32 + lane_index();
        if (kShares == 1) {
          *to = words_of(sum);
        } else {
          wait_cluster();
          send_to_first(to, words_of(sum), arrived);
        }
      });
  if (task.share > 0) return;
  kShares > 1 ? lorry::cuda::wait(arrived, 0) : sync_threads();
  const float total = add_parts(sums);
  const auto at = static_cast<int>(threadIdx.x);
  const int32_t row = rows.begin + at / 16;
  const int r = task.rank + at % 16;
  if (at < 128 && row < rows.end && r < patch.rank) {
    sums_of(a, task.site, row)[r] = patch.scale * total;
  }
}

// grid: tiles of rows x blocks of a cluster, sites x blocks of 16 ranks, segments of a tile.
template <class T, int kShares>
LORRY_KERNEL(32 * kShrinkWarps<kShares>, kShares == 1 ? 2 : 3)
shrink_kernel(AdaptArgs a) {
  let_next_start();
  const ShrinkTask task = task_of<kShares>(a);
  const auto wait = [&] {
    wait_for_previous();
    const bool first = blockIdx.x == 0 && blockIdx.y == 0 && blockIdx.z == 0 && threadIdx.x == 0;
    if (first && a.ready != nullptr) raise_flag(a.ready, a.turn);
  };
  if (a.early) {
    fence();  // so that no older table than the last copy's is read
  } else {
    wait();
  }
  const TileRows rows = rows_of_tile(a, task.tile, task.slot);
  // In registers: what is near may be forgotten at a barrier of the cluster.
  const Patch patch = rows.begin == rows.end ? Patch{} : rows.patch[task.site];
  // While A is on its way; a pair is written when the last linear has read its own. The first slot
  // also says which rows have none.
  const auto describe_and_wait = [&] {
    const bool describes = a.pairs != nullptr && task.rank == 0 && task.share == kShares - 1 &&
                           warp_index() == kShrinkWarps<kShares> - 1;
    const int32_t row = task.tile * kTileRows + lane_index();
    const bool own = row >= rows.begin && row < rows.end;
    bool says = describes && own;
    if (describes && task.slot == 0 && !has_segment(a, task.tile)) {
      says = lane_index() < kTileRows && row < a.rows;
    }
    const RowPair pair = own ? RowPair{patch.b, patch.rank} : RowPair{nullptr, 0};
    if (a.early) wait();
    if (says) a.pairs[int64_t{task.site} * a.rows + row] = pair;
  };
  if (task.rank < patch.rank) {
    shrink_rows<T, kShares>(a, rows, patch, task, describe_and_wait);
  } else {
    describe_and_wait();
  }
}

// Of more tasks than find room on a large device with kShrinkCluster blocks each, most would only
// find that they have no rows.
template <class T>
void shrink_16_bits(Stream s, const AdaptArgs& a, const Grid& tasks) {
  constexpr int64_t kMost = 128;
  const auto by = [&]<int kShares>() {
    start<AdaptArgs, shrink_kernel<T, kShares>>("shrink",
                                                {kShares * tasks.x, tasks.y, tasks.z, kShares},
                                                32 * kShrinkWarps<kShares>, kShrinkShared, s, a);
  };
  const bool few = tasks.x * tasks.y * tasks.z <= kMost;
  if (a.clusters && few) return by.template operator()<kShrinkCluster>();
  by.template operator()<1>();
}

// The same in f32: a warp a row and rank.
constexpr int kPlainWarps = 4;
LORRY_KERNEL(32 * kPlainWarps) shrink_f32_kernel(AdaptArgs a) {
  begin_kernel();
  const auto site = static_cast<int>(blockIdx.y);
  const TileRows rows =
      rows_of_tile(a, static_cast<int32_t>(blockIdx.x), static_cast<int32_t>(blockIdx.z));
  if (rows.begin == rows.end) return;
  const Patch& patch = rows.patch[site];
  const int in = a.site[site].in;
  const int64_t block = int64_t{(in + kChunk - 1) / kChunk} * kRankBlock * kChunk;
  const int n = (rows.end - rows.begin) * patch.rank;
  for (int i = warp_index(); i < n; i += kPlainWarps) {
    const int64_t row = rows.begin + i / patch.rank;
    const int r = i % patch.rank;
    const float* x = static_cast<const float*>(a.x) + row * a.x_pitch;
    const float* w = static_cast<const float*>(patch.a) + r / kRankBlock * block;
    float sum = 0;
    for (int k = lane_index(); k < in; k += 32) {
      const int64_t chunk = k / kChunk * (kRankBlock * kChunk);
      sum = fmaf(x[k], w[chunk + place_in_a(r % kRankBlock, k % kChunk)], sum);
    }
    sum = warp_sum(sum);
    if (lane_index() == 0) sums_of(a, site, row)[r] = patch.scale * sum;
  }
}

}  // namespace

void shrink(Stream s, const AdaptArgs& a, Act act) {
  const int64_t tiles = ceil_div(a.rows, kTileRows);
  const int64_t slots = a.n_segments < kTileRows ? a.n_segments : kTileRows;
  if (act == Act::f32) {
    return start<AdaptArgs, shrink_f32_kernel>("shrink", {tiles, a.sites, slots}, 32 * kPlainWarps,
                                               0, s, a);
  }
  const Grid tasks{tiles, a.sites * ceil_div(a.max_rank, 16), slots};
  with_16_bits(act, [&](auto x) { shrink_16_bits<decltype(x)>(s, a, tasks); });
}

}  // namespace lorry::cuda
