// linear with x in bf16 or f16 for more rows than decoding usually has, on Hopper's wgmma. x is
// arranged first; then prompts go to linear_prompt.cu, and this file multiplies up to 64 rows:
// weights and x by way of shared memory, both slices of the inputs at the same time. The sums are
// in the order of rows_times.h, so the bits are those of linear.cu.
#include "ops/cuda/activation.h"
#include "ops/cuda/kernels.h"
#include "ops/cuda/launch.h"
#include "ops/cuda/rows_times.h"
#include "ops/cuda/wgmma.h"

namespace lorry::cuda {

namespace {

constexpr int kThreads = 256;  // two warpgroups, a slice each
constexpr int kTeam = kThreads / 2;
constexpr int kOutputs = 64;  // of a block
constexpr int kChunksOfTile = kTileInputs / kChunk;
constexpr int kStages = 4;
static_assert(kSlices == 2 && kSliceChunks == 8);
static_assert(kArranged == kSliceChunks * kChunk);

// A chunk of weights that are zero, behind the rows that arrange_kernel makes.
LORRY_DEVICE unsigned char* zeros_of(const LinearArgs& a) {
  return a.arranged + zeros_in_arranged(a.rows, a.plan.in);
}

// Two inputs of a row; beyond the last zeros.
LORRY_DEVICE uint32_t pair_at(const uint16_t* row, int64_t k, int64_t in, bool by_words) {
  if (by_words && k + 2 <= in) return *reinterpret_cast<const uint32_t*>(row + k);
  return (k < in ? row[k] : 0U) | (k + 1 < in ? static_cast<uint32_t>(row[k + 1]) << 16 : 0U);
}

// x with the inputs of each chunk in the order of the a operand: word 4 i + q of a chunk is word
// 4 q + i of x. A thread part i of a chunk, in several rows.
constexpr int kArrangeThreads = 128;
constexpr int kArrangeRows = 4;
LORRY_KERNEL(kArrangeThreads) arrange_kernel(LinearArgs a) {
  begin_kernel();
  if (blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x < kZeroBytes / 16) {
    reinterpret_cast<Word4*>(zeros_of(a))[threadIdx.x] = {0, 0, 0, 0};
  }
  const auto* x = static_cast<const uint16_t*>(a.x);
  const bool by_words = reinterpret_cast<uintptr_t>(x) % 4 == 0 && a.x_pitch % 2 == 0;
  const int64_t part = int64_t{blockIdx.x} * kArrangeThreads + threadIdx.x;
  if (part >= arranged_inputs(a.plan.in) / 8) return;
  const int64_t k = part / 4 * kChunk + part % 4 * 2;
  unsigned char* tile = a.arranged + part / 8 * arranged_rows(a.rows) * kTileRowBytes;
  const int64_t step = int64_t{kArrangeRows} * gridDim.y;
  for (int64_t first = int64_t{kArrangeRows} * blockIdx.y; first < a.rows; first += step) {
    Word4 v[kArrangeRows];
    LORRY_UNROLL
    for (int i = 0; i < kArrangeRows; ++i) {
      const uint16_t* row = x + (first + i < a.rows ? first + i : a.rows - 1) * a.x_pitch;
      v[i] = {pair_at(row, k, a.plan.in, by_words), pair_at(row, k + 8, a.plan.in, by_words),
              pair_at(row, k + 16, a.plan.in, by_words), pair_at(row, k + 24, a.plan.in, by_words)};
    }
    LORRY_UNROLL
    for (int i = 0; i < kArrangeRows; ++i) {
      if (first + i >= a.rows) break;
      unsigned char* rows = tile + (first + i) / 8 * 8 * kTileRowBytes;
      *reinterpret_cast<Word4*>(rows + place_in_tile(static_cast<int>((first + i) % 8),
                                                     static_cast<int>(part % 8))) = v[i];
    }
  }
}

// kN: rows of x in a tile.
template <int kN_>
struct Shape {
  static constexpr int kN = kN_;
  static constexpr int kTileBytes = kN * kTileRowBytes;
  static constexpr int kParts = kN * 8 / kTeam;  // of 16 bytes, of a thread
  static constexpr size_t kTiles = size_t{2} * kStages * kTileBytes;
  static constexpr size_t kTotals = sizeof(float) * kN / 2 * kTeam;
  static constexpr size_t kShared = kTiles + kTotals + kTileAlign;
};

// The tiles of x that a thread helps to fill.
template <class S>
struct TileLoader {
  unsigned char* tiles;
  const unsigned char* x;
  int64_t pitch;  // bytes from tile to tile
  int first;      // row of x
  int rows;       // what would be beyond them is the last one's
  int end;        // tiles from here on are zeros

  LORRY_DEVICE void load(int stage, int tile) const {
    const auto thread = static_cast<int>(threadIdx.x) % kTeam;
    unsigned char* shared = tiles + tile * S::kTileBytes;
    LORRY_UNROLL
    for (int i = 0; i < S::kParts; ++i) {
      const int row = (i * kTeam + thread) / 8;
      const int part = thread % 8;
      const int own = first + (row < rows ? row : rows - 1);
      copy_async(shared + place_in_tile(row, part),
                 x + stage * pitch + own / 8 * 8 * kTileRowBytes + place_in_tile(own % 8, part),
                 stage >= end);
    }
  }
};

// What a warp multiplies: a row block of one group.
struct Place {
  const unsigned char* w;
  const float* scales;  // null: none
  int64_t block;
  int32_t begin, end;  // rows of the group
};
// The warps of a team have the four row blocks of 64 outputs; with an activation two of a gate's
// and the two that belong to them.
LORRY_DEVICE Place place_of(const LinearArgs& a) {
  Place p;
  const auto group = static_cast<int>(blockIdx.z);
  p.begin = a.begin == nullptr ? 0 : a.begin[group];
  p.end = a.begin == nullptr ? a.rows : a.begin[group + 1];
  const int warp = warp_index() % 4;
  const int64_t y = blockIdx.y;
  p.block = a.glu.y == nullptr ? y * 4 + warp : y / 2 * 8 + warp / 2 * 4 + y % 2 * 2 + warp % 2;
  const int64_t blocks = (a.out + kRowBlock - 1) / kRowBlock;
  const int64_t own = p.block < blocks ? p.block : blocks - 1;  // beyond the last: not stored
  p.w = a.w + group * a.group_bytes + own * a.plan.block_bytes();
  p.scales =
      a.plan.scales == 0 ? nullptr : reinterpret_cast<const float*>(p.w + a.plan.scales_offset());
  return p;
}

// Calls f(output, row, i) for the sums of a lane, of its warp's 16 outputs and the rows of a tile.
template <class S, class F>
LORRY_DEVICE void each_sum(F&& f) {
  LORRY_UNROLL
  for (int i = 0; i < S::kN / 2; ++i) {
    f(lane_index() / 4 + i % 4 / 2 * 8, i / 4 * 8 + lane_index() % 4 * 2 + i % 2, i);
  }
}

template <class S>
LORRY_DEVICE void store(const LinearArgs& a, const Place& p, const float (&sum)[S::kN / 2],
                        int32_t first) {
  const int64_t column = p.block * kRowBlock;
  each_sum<S>([&](int o, int r, int i) {
    if (column + o >= a.out || first + r >= p.end) return;
    a.y[(first + r) * a.y_pitch + column + o] = sum[i];
  });
}

// sums + the totals of the first slice, to where they belong.
template <class T, class S>
LORRY_DEVICE void finish(const LinearArgs& a, const Place& p, float (&sum)[S::kN / 2],
                         float* totals, int32_t first) {
  const int team = static_cast<int>(threadIdx.x) / kTeam;
  float* own = totals + threadIdx.x % kTeam;
  if (team == 0) each_sum<S>([&](int, int, int i) { own[i * kTeam] = sum[i]; });
  sync_threads();
  if (team == 1) {
    each_sum<S>([&](int o, int, int i) {
      sum[i] = (own[i * kTeam] + sum[i]) * (p.scales == nullptr ? 1.0F : p.scales[o]);
    });
  }
  if (a.glu.y == nullptr) {
    if (team == 1) store<S>(a, p, sum, first);
    return;
  }
  const bool up = warp_index() % 4 >= 2;
  if (team == 1 && up) each_sum<S>([&](int, int, int i) { own[i * kTeam] = sum[i]; });
  sync_threads();
  if (team == 0 || up) return;
  const int64_t column = p.block / 8 * 64 + p.block % 8 * kRowBlock;
  each_sum<S>([&](int o, int r, int i) {
    if (column + o >= a.glu.cols || first + r >= p.end) return;
    static_cast<uint16_t*>(a.glu.y)[(first + r) * a.glu.pitch + column + o] =
        T::to(gated(a.glu.activation, sum[i], own[i * kTeam + kTeam / 2]));
  });
}

// Rows r ... of the place's group, at most S::kN; the two slices side by side.
template <class Load, class S>
LORRY_DEVICE void multiply_slices(const LinearArgs& a, const Place& p, int32_t r) {
  constexpr int kN = S::kN;
  constexpr int kAhead = kStages - 1;                     // tiles on their way
  constexpr int kWeights = kChunksOfTile * Load::kBytes;  // of a warp's row block in a tile
  const int team = static_cast<int>(threadIdx.x) / kTeam;
  const auto chunks = static_cast<int>(a.plan.chunks());
  const int half = slice_begin(chunks, 1), from = team == 0 ? 0 : half;
  const int stop = team == 0 ? half : chunks;  // chunks from here on are zeros
  const int tiles = (chunks - half + kChunksOfTile - 1) / kChunksOfTile;  // of both
  unsigned char* shared = align_tile(shared_bytes());
  unsigned char* weights = shared + S::kTiles + S::kTotals + warp_index() * kStages * kWeights;
  const int64_t pitch = arranged_rows(a.rows) * kTileRowBytes;
  const TileLoader<S> loader{shared + team * kStages * S::kTileBytes,
                             a.arranged + from / kChunksOfTile * pitch,
                             pitch,
                             r,
                             p.end - r,
                             (stop - from + kChunksOfTile - 1) / kChunksOfTile};
  const auto load = [&](int t, int place) {
    if (t < tiles) {
      loader.load(t, place);
      LORRY_UNROLL
      for (int c = 0; c < kChunksOfTile; ++c) {
        const int chunk = from + t * kChunksOfTile + c;
        copy_chunk<Load>(weights + place * kWeights + c * Load::kBytes,
                         chunk < stop ? p.w + int64_t{chunk} * Load::kBytes : zeros_of(a));
      }
    }
    commit_copies();
  };
  LORRY_UNROLL
  for (int t = 0; t < kAhead; ++t) load(t, t);
  float sum[kN / 2];
  int place = 0;
  for (int t = 0; t < tiles; ++t) {
    wait_copies<kAhead - 1>();
    publish_to_wgmma();
    sync_threads();
    load(t + kAhead, place == 0 ? kStages - 1 : place - 1);
    Tiles w[kChunksOfTile];
    LORRY_UNROLL
    for (int c = 0; c < kChunksOfTile; ++c) {
      w[c] = Load::load(weights + place * kWeights + c * Load::kBytes);
    }
    const unsigned char* x = loader.tiles + place * S::kTileBytes;
    wgmma_fence();
    LORRY_UNROLL
    for (int c = 0; c < kChunksOfTile; ++c) {
      wgmma<typename Load::Act, kN>(sum, w[c].t[0], tile_operand(x, c * 64), t > 0 || c > 0);
      wgmma<typename Load::Act, kN>(sum, w[c].t[1], tile_operand(x, c * 64 + 32), true);
    }
    wgmma_commit();
    wgmma_wait<0>();
    place = place + 1 == kStages ? 0 : place + 1;
  }
  let_next_start();
  finish<typename Load::Act, S>(a, p, sum, reinterpret_cast<float*>(shared + S::kTiles), r);
  sync_threads();  // the tiles and totals have been read
}

// grid: -, outputs, groups.
template <class Load, class S>
LORRY_KERNEL(kThreads)
split_kernel(LinearArgs a) {
  wait_for_previous();
  const Place p = place_of(a);
  for (int32_t r = p.begin; r < p.end; r += S::kN) multiply_slices<Load, S>(a, p, r);
}

template <class Load, int kN>
void split(Stream s, const LinearArgs& a) {
  using S = Shape<kN>;
  constexpr size_t kWeights = size_t{kThreads / 32} * kStages * kChunksOfTile * Load::kBytes;
  start<LinearArgs, split_kernel<Load, S>>("linear_wide", {1, ceil_div(a.out, kOutputs), a.groups},
                                           kThreads, S::kShared + kWeights, s, a);
}

template <class Load>
void multiply_split(Stream s, const LinearArgs& a) {
  expected_rows(a) <= 32 ? split<Load, 32>(s, a) : split<Load, 64>(s, a);
}

}  // namespace

void linear_wide(Stream s, const LinearArgs& a) {
  const Grid parts =
      elements(ceil_div(a.rows, kArrangeRows), arranged_inputs(a.plan.in) / 8, kArrangeThreads);
  start<LinearArgs, arrange_kernel>("arrange", parts, kArrangeThreads, 0, s, a);
  if (expected_rows(a) > 64) {
    return a.plan.values == Values::fp8 ? linear_prompt_fp8(s, a) : linear_prompt(s, a);
  }
  with_load(a, [&](auto load) { multiply_split<decltype(load)>(s, a); });
}

}  // namespace lorry::cuda
