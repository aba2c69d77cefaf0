// linear with x in bf16 for many rows, on Hopper's wgmma: weights go from memory into the registers
// of the a operand as they lie, x through tiles in shared memory. The sums are in the order of
// rows_times.h, so the bits are those of linear.cu.
#include "ops/cuda/kernels.h"
#include "ops/cuda/launch.h"
#include "ops/cuda/rows_times.h"
#include "ops/cuda/wgmma.h"

namespace lorry::cuda {

namespace {

constexpr int kThreads = 256;   // two warpgroups
constexpr int kGroupRows = 64;  // outputs of a warpgroup
constexpr int kChunksOfTile = kTileInputs / kChunk;
constexpr int kWidest = 256;  // rows of a tile
static_assert(kSlices == 2 && kSliceChunks == 8);
static_assert(kArranged == kSliceChunks * kChunk);

// A chunk of weights that are zero, behind the rows that arrange_kernel makes.
LORRY_DEVICE unsigned char* zeros_of(const LinearArgs& a) {
  return reinterpret_cast<unsigned char*>(a.arranged + a.rows * a.arranged_pitch);
}

// x with the inputs of each chunk in the order of the a operand: word 8 t + 4 h + q of a chunk is
// word 4 q + 2 t + h of x. Rows end with zeros. A thread a chunk.
constexpr int kArrangeThreads = 128;
LORRY_KERNEL(kArrangeThreads) arrange_kernel(LinearArgs a) {
  begin_kernel();
  const int64_t chunks = a.arranged_pitch / kChunk;
  const auto* x = static_cast<const uint16_t*>(a.x);
  const bool wide = reinterpret_cast<uintptr_t>(x) % 16 == 0 && a.x_pitch % 8 == 0;
  if (blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x < kZeroBytes / 16) {
    reinterpret_cast<Word4*>(zeros_of(a))[threadIdx.x] = {0, 0, 0, 0};
  }
  const int64_t chunk = int64_t{blockIdx.x} * kArrangeThreads + threadIdx.x;
  if (chunk >= chunks) return;
  const auto k = static_cast<int>(chunk) * kChunk;
  for (int64_t row = blockIdx.y; row < a.rows; row += gridDim.y) {
    const uint16_t* from = x + row * a.x_pitch + k;
    Word4 q[4];
    LORRY_UNROLL
    for (int part = 0; part < 4; ++part) {
      if (wide && k + 8 * part + 8 <= a.plan.in) {
        q[part] = reinterpret_cast<const Word4*>(from)[part];
        continue;
      }
      uint32_t v[8];
      LORRY_UNROLL
      for (int e = 0; e < 8; ++e) v[e] = k + 8 * part + e < a.plan.in ? from[8 * part + e] : 0U;
      q[part] = {v[0] | v[1] << 16, v[2] | v[3] << 16, v[4] | v[5] << 16, v[6] | v[7] << 16};
    }
    auto* to = reinterpret_cast<Word4*>(a.arranged + row * a.arranged_pitch + k);
    to[0] = {q[0].x, q[1].x, q[2].x, q[3].x};
    to[1] = {q[0].y, q[1].y, q[2].y, q[3].y};
    to[2] = {q[0].z, q[1].z, q[2].z, q[3].z};
    to[3] = {q[0].w, q[1].w, q[2].w, q[3].w};
  }
}

// kSplit: the warpgroups have the same 64 outputs, and a slice of the inputs each; weights come by
// way of shared memory, of which there is enough. Else: 64 outputs each, slice after slice. kN rows
// of x in a tile.
template <int kN_, bool kSplit_>
struct Shape {
  static constexpr int kN = kN_;
  static constexpr bool kSplit = kSplit_;
  static constexpr int kStages = kSplit ? 4 : 3;
  static constexpr int kOutputs = kSplit ? kGroupRows : 2 * kGroupRows;
  static constexpr int kLoaders = kSplit ? kThreads / 2 : kThreads;  // threads that fill a tile
  static constexpr int kTileBytes = kN * kTileRowBytes;
  static constexpr int kParts = kN * 8 / kLoaders;  // of 16 bytes, of a thread
  static constexpr size_t kTiles = size_t{kStages} * kTileBytes * (kSplit ? 2 : 1);
  static constexpr size_t kTotals = sizeof(float) * kN / 2 * kLoaders;
  static constexpr size_t kShared = kTiles + kTotals + kTileAlign;
};

// The tiles of x that a thread helps to fill.
template <class S>
struct TileLoader {
  unsigned char* tiles;
  const unsigned char* x;
  int64_t pitch;  // bytes
  int first;      // row of x
  int rows;       // what would be beyond them is the last one's
  int end;        // tiles from here on are zeros
  int thread;

  LORRY_DEVICE void load(int stage, int tile) const {
    unsigned char* shared = tiles + tile * S::kTileBytes;
    LORRY_UNROLL
    for (int i = 0; i < S::kParts; ++i) {
      const int row = (i * S::kLoaders + thread) / 8;
      const int part = thread % 8;
      const int own = row < rows ? row : rows - 1;
      copy_async(shared + place_in_tile(row, part),
                 x + (first + own) * pitch + int64_t{stage} * kTileRowBytes + part * 16,
                 stage >= end);
    }
  }
};

// Chunk `chunk` of a row block; beyond the end zeros, which are read too: registers of wgmma's that
// are written otherwise make it wait.
template <class Load>
LORRY_DEVICE Tiles load_chunk(const unsigned char* w, int chunk, int end,
                              const unsigned char* zeros) {
  return Load::load(chunk < end ? w + int64_t{chunk} * Load::kBytes : zeros);
}

template <class S>
LORRY_DEVICE void store(const LinearArgs& a, const float (&sum)[S::kN / 2], int64_t column,
                        const float* scales, int32_t first, int32_t end) {
  LORRY_UNROLL
  for (int h = 0; h < 2; ++h) {
    const int o = lane_index() / 4 + 8 * h;
    if (column + o >= a.out) continue;
    const float scale = scales == nullptr ? 1.0F : scales[o];
    float* y = a.y + column + o;
    LORRY_UNROLL
    for (int n = 0; n < S::kN / 4; ++n) {
      const int32_t row = first + n / 2 * 8 + lane_index() % 4 * 2 + n % 2;
      if (row < end) y[row * a.y_pitch] = sum[n / 2 * 4 + 2 * h + n % 2] * scale;
    }
  }
}

// What a warp multiplies: a row block of one group.
struct Place {
  const unsigned char* w;
  const float* scales;  // null: none
  int64_t column;
  int32_t begin, end;  // rows of the group
};
template <bool kSplit>
LORRY_DEVICE Place place_of(const LinearArgs& a) {
  Place p;
  const auto group = static_cast<int>(blockIdx.z);
  p.begin = a.begin == nullptr ? 0 : a.begin[group];
  p.end = a.begin == nullptr ? a.rows : a.begin[group + 1];
  const int64_t block =
      kSplit ? int64_t{blockIdx.y} * 4 + warp_index() % 4 : int64_t{blockIdx.y} * 8 + warp_index();
  const int64_t blocks = (a.out + kRowBlock - 1) / kRowBlock;
  const int64_t own = block < blocks ? block : blocks - 1;  // beyond the last: not stored
  p.w = a.w + group * a.group_bytes + own * a.plan.block_bytes();
  p.scales =
      a.plan.scales == 0 ? nullptr : reinterpret_cast<const float*>(p.w + a.plan.scales_offset());
  p.column = block * kRowBlock;
  return p;
}

template <class S>
LORRY_DEVICE void put_totals(float* totals, int slot, const float (&sum)[S::kN / 2]) {
  LORRY_UNROLL
  for (int i = 0; i < S::kN / 2; ++i) totals[i * S::kLoaders + slot] = sum[i];
}
template <class S>
LORRY_DEVICE void add_totals(const float* totals, int slot, float (&sum)[S::kN / 2]) {
  LORRY_UNROLL
  for (int i = 0; i < S::kN / 2; ++i) sum[i] = totals[i * S::kLoaders + slot] + sum[i];
}

template <class S>
LORRY_DEVICE TileLoader<S> loader_of(const LinearArgs& a, const Place& p, unsigned char* tiles,
                                     int32_t r, int from, int stop) {
  TileLoader<S> loader;
  loader.tiles = tiles;
  loader.x = reinterpret_cast<const unsigned char*>(a.arranged) + int64_t{from} * kChunk * 2;
  loader.pitch = a.arranged_pitch * 2;
  loader.first = r;
  loader.rows = p.end - r;
  loader.end = (stop - from + kChunksOfTile - 1) / kChunksOfTile;
  loader.thread = static_cast<int>(threadIdx.x) % S::kLoaders;
  return loader;
}

// Rows r ... of the place's group, at most S::kN; the two slices side by side.
template <class Load, class S>
LORRY_DEVICE void multiply_slices(const LinearArgs& a, const Place& p, int32_t r) {
  constexpr int kN = S::kN;
  constexpr int kAhead = S::kStages - 1;                  // tiles on their way
  constexpr int kWeights = kChunksOfTile * Load::kBytes;  // of a warp's row block in a tile
  const int team = static_cast<int>(threadIdx.x) / 128;
  const int slot = static_cast<int>(threadIdx.x) % 128;
  const auto chunks = static_cast<int>(a.plan.chunks());
  const int half = slice_begin(chunks, 1);
  const int from = team == 0 ? 0 : half;
  const int stop = team == 0 ? half : chunks;  // chunks from here on are zeros
  const int tiles = (chunks - half + kChunksOfTile - 1) / kChunksOfTile;  // of both
  const unsigned char* zeros = zeros_of(a);
  unsigned char* shared = align_tile(shared_bytes());
  float* totals = reinterpret_cast<float*>(shared + S::kTiles);
  unsigned char* weights = shared + S::kTiles + S::kTotals + warp_index() * S::kStages * kWeights;
  const TileLoader<S> loader =
      loader_of<S>(a, p, shared + team * S::kStages * S::kTileBytes, r, from, stop);
  const auto load = [&](int t, int place) {
    if (t < tiles) {
      loader.load(t, place);
      LORRY_UNROLL
      for (int c = 0; c < kChunksOfTile; ++c) {
        const int chunk = from + t * kChunksOfTile + c;
        copy_chunk<Load>(weights + place * kWeights + c * Load::kBytes,
                         chunk < stop ? p.w + int64_t{chunk} * Load::kBytes : zeros);
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
    load(t + kAhead, place == 0 ? S::kStages - 1 : place - 1);
    Tiles w[kChunksOfTile];
    LORRY_UNROLL
    for (int c = 0; c < kChunksOfTile; ++c) {
      w[c] = Load::load(weights + place * kWeights + c * Load::kBytes);
    }
    const unsigned char* x = loader.tiles + place * S::kTileBytes;
    wgmma_fence();
    LORRY_UNROLL
    for (int c = 0; c < kChunksOfTile; ++c) {
      wgmma<kN>(sum, w[c].t[0], tile_operand(x, c * 64), t > 0 || c > 0);
      wgmma<kN>(sum, w[c].t[1], tile_operand(x, c * 64 + 32), true);
    }
    wgmma_commit();
    wgmma_wait<0>();
    place = place + 1 == S::kStages ? 0 : place + 1;
  }
  if (team == 0) put_totals<S>(totals, slot, sum);
  sync_threads();
  if (team == 1) {
    add_totals<S>(totals, slot, sum);
    store<S>(a, sum, p.column, p.scales, r, p.end);
  }
  sync_threads();  // the tiles and totals have been read
}

// The same, slice after slice.
template <class Load, class S>
LORRY_DEVICE void multiply_tile(const LinearArgs& a, const Place& p, int32_t r) {
  constexpr int kN = S::kN;
  constexpr int kAhead = S::kStages - 2;  // tiles on their way
  constexpr int kBuffers = 4;             // chunks of weights in registers
  constexpr int kTilesOfRound = kBuffers / kChunksOfTile;
  const auto chunks = static_cast<int>(a.plan.chunks());
  const int rounds = (chunks + kBuffers - 1) / kBuffers;
  const int turn = slice_begin(chunks, 1) / kBuffers;  // round that begins the second slice
  const int tiles = rounds * kTilesOfRound;
  const unsigned char* zeros = zeros_of(a);
  unsigned char* shared = align_tile(shared_bytes());
  float* totals = reinterpret_cast<float*>(shared + S::kTiles);
  const auto slot = static_cast<int>(threadIdx.x);
  const TileLoader<S> loader = loader_of<S>(a, p, shared, r, 0, chunks);
  LORRY_UNROLL
  for (int t = 0; t < kAhead; ++t) {
    loader.load(t, t);
    commit_copies();
  }
  Tiles weights[kBuffers];
  LORRY_UNROLL
  for (int c = 0; c < kBuffers - 1; ++c) {
    weights[c] = load_chunk<Load>(p.w, c, chunks, zeros);
  }
  float sum[kN / 2];
  bool fresh = true;
  int tile = 0;       // of the one that is multiplied
  int next = kAhead;  // of the one that is loaded
  for (int round = 0; round < rounds; ++round) {
    if (round == turn && round > 0) {
      wgmma_wait<0>();
      put_totals<S>(totals, slot, sum);
      fresh = true;
    }
    LORRY_UNROLL
    for (int h = 0; h < kTilesOfRound; ++h) {
      const int t = round * kTilesOfRound + h;
      wait_copies<kAhead - 1>();
      publish_to_wgmma();
      sync_threads();
      if (t + kAhead < tiles) loader.load(t + kAhead, next);
      commit_copies();
      const unsigned char* x = loader.tiles + tile * S::kTileBytes;
      LORRY_UNROLL
      for (int c = 0; c < kChunksOfTile; ++c) {
        const int at = h * kChunksOfTile + c;
        wgmma_fence();
        wgmma<kN>(sum, weights[at].t[0], tile_operand(x, c * 64), !fresh);
        wgmma<kN>(sum, weights[at].t[1], tile_operand(x, c * 64 + 32), true);
        wgmma_commit();
        fresh = false;
        wgmma_wait<1>();
        weights[(at + kBuffers - 1) % kBuffers] =
            load_chunk<Load>(p.w, t * kChunksOfTile + c + kBuffers - 1, chunks, zeros);
      }
      tile = tile + 1 == S::kStages ? 0 : tile + 1;
      next = next + 1 == S::kStages ? 0 : next + 1;
    }
  }
  wgmma_wait<0>();
  if (turn > 0) add_totals<S>(totals, slot, sum);
  store<S>(a, sum, p.column, p.scales, r, p.end);
  sync_threads();  // the tiles and totals have been read
}

// Decode of many sequences. grid: row tiles, outputs, groups.
template <class Load, class S>
LORRY_KERNEL(kThreads)
split_kernel(LinearArgs a) {
  begin_kernel();
  const Place p = place_of<true>(a);
  const auto step = static_cast<int32_t>(S::kN * gridDim.x);
  for (int32_t r = p.begin + static_cast<int32_t>(S::kN * blockIdx.x); r < p.end; r += step) {
    multiply_slices<Load, S>(a, p, r);
  }
}

// Rows of a tile, if all tiles of a group are as wide as each other.
constexpr int32_t width_of(int32_t rows) {
  const int32_t tiles = (rows + kWidest - 1) / kWidest;
  return rows == 0 ? 0 : (rows + tiles - 1) / tiles;
}

// Prompts: groups whose tiles have more than kAbove rows, and at most S::kN. grid: as above.
template <class Load, class S, int kAbove>
LORRY_KERNEL(kThreads)
wide_kernel(LinearArgs a) {
  begin_kernel();
  const Place p = place_of<false>(a);
  const int32_t width = width_of(p.end - p.begin);
  if (width <= kAbove || width > S::kN) return;
  const auto step = static_cast<int32_t>(S::kN * gridDim.x);
  for (int32_t r = p.begin + static_cast<int32_t>(S::kN * blockIdx.x); r < p.end; r += step) {
    multiply_tile<Load, S>(a, p, r);
  }
}

Grid grid_of(const LinearArgs& a, int64_t tiles, int outputs) {
  return {tiles < 1024 ? tiles : 1024, ceil_div(a.out, outputs), a.groups};
}

template <class Load, int kN>
void split(Stream s, const LinearArgs& a) {
  using S = Shape<kN, true>;
  constexpr size_t kWeights = size_t{kThreads / 32} * S::kStages * kChunksOfTile * Load::kBytes;
  start<LinearArgs, split_kernel<Load, S>>("linear_wide", grid_of(a, 1, S::kOutputs), kThreads,
                                           S::kShared + kWeights, s, a);
}

template <class Load, int kN, int kAbove>
void wide(Stream s, const LinearArgs& a) {
  using S = Shape<kN, false>;
  const Grid grid = grid_of(a, ceil_div(expected_rows(a), kN), S::kOutputs);
  start<LinearArgs, wide_kernel<Load, S, kAbove>>("linear_wide", grid, kThreads, S::kShared, s, a);
}

// Groups are of different sizes, which only the device knows: there each kernel takes its own.
template <class Load>
void multiply_all(Stream s, const LinearArgs& a) {
  const int64_t expected = expected_rows(a);
  if (expected <= 32) return split<Load, 32>(s, a);
  if (expected <= 64) return split<Load, 64>(s, a);
  const int32_t width = a.groups == 1 ? width_of(a.rows) : 0;
  if (width == 0 || width <= 128) wide<Load, 128, 0>(s, a);
  if (width == 0 || (width > 128 && width <= 192)) wide<Load, 192, 128>(s, a);
  if (width == 0 || width > 192) wide<Load, kWidest, 192>(s, a);
}

}  // namespace

void linear_wide(Stream s, const LinearArgs& a) {
  const Grid chunks = elements(a.rows, a.arranged_pitch / kChunk, kArrangeThreads);
  start<LinearArgs, arrange_kernel>("arrange", chunks, kArrangeThreads, 0, s, a);
  if (a.plan.values == Values::fp8) return multiply_all<LoadFp8>(s, a);
  multiply_all<LoadBf16>(s, a);
}

}  // namespace lorry::cuda
