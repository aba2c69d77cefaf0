// linear with int8 and int4 weights for many rows, on Hopper's wgmma: weights go from memory into
// the registers of the a operand, x through tiles in shared memory. A warpgroup has 64 outputs and
// multiplies the rows of a tile by halves: while the tensor cores are at one, the sums of the other
// are scaled.
#include "ops/cuda/launch.h"
#include "ops/cuda/quant.h"
#include "ops/cuda/wgmma_s8.h"

namespace lorry::cuda {

namespace {

constexpr int kThreads = 256;  // two warpgroups
constexpr int kWarps = kThreads / 32;
constexpr int kChunksOfTile = kTileRowBytes / kChunk;
constexpr int kWidest = 128;  // rows of a tile
static_assert(kQuantised == kTileRowBytes);

// kHalf: rows of x in half a tile.
template <int kHalf>
struct Shape {
  static constexpr int kStages = 6;
  static constexpr int kAhead = kStages - 1;  // tiles on their way
  static constexpr int kHalfBytes = kHalf * kTileRowBytes;
  static constexpr int kTileBytes = 2 * kHalfBytes;
  static constexpr int kParts = kTileBytes / 16 / kThreads;  // of a thread
};
constexpr size_t kShared =
    size_t{Shape<kWidest / 2>::kStages} * Shape<kWidest / 2>::kTileBytes + kTileAlign;

// What a warp multiplies: a row block of one group.
struct Place {
  const unsigned char* w;
  int64_t column;
  int32_t begin, end;  // rows of the group
};
LORRY_DEVICE Place place_of(const LinearArgs& a) {
  const auto group = static_cast<int>(blockIdx.z);
  const Rows rows = rows_of(a, group);
  const int64_t block = int64_t{blockIdx.y} * kWarps + warp_index();
  const int64_t blocks = (a.out + kRowBlock - 1) / kRowBlock;
  const int64_t own = block < blocks ? block : blocks - 1;  // beyond the last: not stored
  return {a.w + group * a.group_bytes + own * a.plan.block_bytes(), block * kRowBlock, rows.begin,
          rows.end};
}

// Rows first ... of xq as tiles; what would be beyond the last row is the last one's.
template <class S>
struct TileLoader {
  static constexpr int kRowsOfPart = kThreads / 8;
  static_assert(kRowsOfPart % 8 == 0);  // so that the thread's parts are swizzled alike
  const int8_t* x[S::kParts];
  unsigned char* to;

  LORRY_DEVICE TileLoader(const QuantArgs& q, unsigned char* tiles, int32_t first, int32_t end) {
    const auto thread = static_cast<int>(threadIdx.x);
    to = tiles + place_in_tile(thread / 8, thread % 8);
    LORRY_UNROLL
    for (int i = 0; i < S::kParts; ++i) {
      const int32_t row = first + thread / 8 + i * kRowsOfPart;
      const int64_t pitch = quantised_pitch(q.linear.plan);
      x[i] = q.xq + (row < end ? row : end - 1) * pitch + thread % 8 * 16;
    }
  }
  LORRY_DEVICE void load(int tile, int place) const {
    LORRY_UNROLL
    for (int i = 0; i < S::kParts; ++i) {
      copy_async(to + place * S::kTileBytes + i * kRowsOfPart * kTileRowBytes,
                 x[i] + tile * kTileRowBytes);
    }
  }
};

// A warp's weights of a tile. Chunks beyond the last, where x is zero, are the last one.
template <class Load>
LORRY_DEVICE void load_weights(typename Load::Raw (&raw)[kChunksOfTile], const unsigned char* w,
                               int tile, int chunks) {
  constexpr int kBytes = kChunksOfTile * Load::kBytes;
  constexpr int kFar = 8;  // tiles that are on their way to the L2 cache
  const unsigned char* own = w + tile * kBytes;
  if (lane_index() * 128 < kBytes && (tile + kFar + 1) * kChunksOfTile <= chunks) {
    prefetch(own + kFar * kBytes + lane_index() * 128);
  }
  const int last = chunks - tile * kChunksOfTile - 1;
  if (last >= kChunksOfTile - 1) {
    LORRY_UNROLL
    for (int c = 0; c < kChunksOfTile; ++c) raw[c] = Load::raw(own + c * Load::kBytes);
    return;
  }
  LORRY_UNROLL
  for (int c = 0; c < kChunksOfTile; ++c) {
    raw[c] = Load::raw(own + (c < last ? c : last) * Load::kBytes);
  }
}

// A scale of a lane's outputs, g and g + 8 of the row block.
struct Scales {
  int index;
  uint32_t loaded[2];
  int zero[2];

  LORRY_DEVICE Scales(const Side& side, int index_) : index(index_), loaded{}, zero{} {
    LORRY_UNROLL
    for (int h = 0; h < 2; ++h) {
      const int o = lane_index() / 4 + 8 * h;
      loaded[h] = side.load(index, o);
      if (side.zeros != nullptr) zero[h] = side.zero(index, o);
    }
  }
};

// f <- fma(sum less its zero point, scale, f) for rows first ... of half a tile.
template <class Load, int kHalf>
LORRY_DEVICE void add_scaled(float (&f)[kHalf / 2], const int (&sum)[kHalf / 2], const Side& side,
                             const Scales& s, const QuantArgs& q, int32_t first, int32_t end) {
  // Of f16 the power of two that sums have too much is taken off the scale: nothing is rounded.
  const float factor = side.half ? 1.0F / (1 << Load::kShift) : 1.0F;
  const float scale[2] = {side.widen(s.loaded[0]) * factor, side.widen(s.loaded[1]) * factor};
  const bool zeros = side.zeros != nullptr;
  if (side.half && !zeros) {
    LORRY_UNROLL
    for (int i = 0; i < kHalf / 2; ++i) {
      f[i] = fmaf(static_cast<float>(sum[i]), scale[i / 2 % 2], f[i]);
    }
    return;
  }
  const int32_t* sums = q.sums + int64_t{s.index} * q.linear.rows;
  LORRY_UNROLL
  for (int i = 0; i < kHalf / 2; ++i) {
    const int32_t row = first + i / 4 * 8 + lane_index() % 4 * 2 + i % 2;
    const int inputs = zeros ? sums[row < end ? row : end - 1] : 0;
    const int zero = s.zero[i / 2 % 2];
    const float exact = side.half ? exact_sum<LoadS8>(sum[i], zero * (1 << Load::kShift), inputs)
                                  : exact_sum<Load>(sum[i], zero, inputs);
    f[i] = fmaf(exact, scale[i / 2 % 2], f[i]);
  }
}

template <int kHalf>
LORRY_DEVICE void store(const QuantArgs& q, const float (&f)[kHalf / 2], int64_t column,
                        int32_t first, int32_t end) {
  const LinearArgs& a = q.linear;
  LORRY_UNROLL
  for (int n = 0; n < kHalf / 4; ++n) {
    const int32_t row = first + n / 2 * 8 + lane_index() % 4 * 2 + n % 2;
    if (row >= end) continue;
    const float scale = q.scale[row];
    LORRY_UNROLL
    for (int h = 0; h < 2; ++h) {
      const int64_t o = column + lane_index() / 4 + 8 * h;
      if (o < a.out) a.y[row * a.y_pitch + o] = f[n / 2 * 4 + 2 * h + n % 2] * scale;
    }
  }
}

// In registers of its own, which wgmma reads while others are loaded. zero: 0, which the compiler
// does not know: it takes a plain copy for the thing itself.
LORRY_DEVICE Word4 copied(const Word4& w, uint32_t zero) {
  return {w.x | zero, w.y | zero, w.z | zero, w.w | zero};
}

// Half a tile times a warp's weights.
template <int kHalf>
LORRY_DEVICE void multiply_half(int (&sum)[kHalf / 2], const Word4 (&a)[kChunksOfTile],
                                const unsigned char* x, bool add) {
  wgmma_fence();
  LORRY_UNROLL
  for (int c = 0; c < kChunksOfTile; ++c) {
    wgmma_s8<kHalf>(sum, a[c], tile_operand(x, c * kChunk), add || c > 0);
  }
  wgmma_commit();
}

// Rows r ... of the place's group, at most 2 kHalf.
template <class Load, int kHalf>
LORRY_DEVICE void multiply_tile(const QuantArgs& q, const Place& p, int32_t r) {
  using S = Shape<kHalf>;
  const WeightPlan& plan = q.linear.plan;
  const auto chunks = static_cast<int>(plan.chunks());
  const auto tiles = static_cast<int>(quantised_pitch(plan) / kTileRowBytes);
  const int per_scale = plan.scales == 1 ? tiles : plan.group / kTileRowBytes;
  unsigned char* shared = align_tile(shared_bytes());
  const TileLoader<S> loader(q, shared, r, p.end);
  LORRY_UNROLL
  for (int t = 0; t < S::kAhead; ++t) {
    if (t < tiles) loader.load(t, t);
    commit_copies();
  }
  typename Load::Raw raw[kChunksOfTile];
  load_weights<Load>(raw, p.w, 0, chunks);
  int low[kHalf / 2], high[kHalf / 2];
  float f_low[kHalf / 2] = {}, f_high[kHalf / 2] = {};
  const Side side(plan, p.w + plan.scales_offset());
  Scales scales(side, 0);
  const uint32_t zero = static_cast<uint32_t>(q.linear.rows) >> 31U;
  int left = per_scale;  // tiles of the scale, this one too
  int place = 0;         // of the tile
  for (int t = 0; t < tiles; ++t) {
    wait_copies<S::kAhead - 1>();
    publish_to_wgmma();
    sync_threads();
    if (t + S::kAhead < tiles) loader.load(t + S::kAhead, place == 0 ? S::kAhead : place - 1);
    commit_copies();
    Word4 a[kChunksOfTile];
    LORRY_UNROLL
    for (int c = 0; c < kChunksOfTile; ++c) a[c] = copied(Load::widen(raw[c]), zero);
    const unsigned char* x = shared + place * S::kTileBytes;
    const bool add = left < per_scale;
    multiply_half<kHalf>(low, a, x, add);
    multiply_half<kHalf>(high, a, x + S::kHalfBytes, add);
    if (t + 1 < tiles) load_weights<Load>(raw, p.w, t + 1, chunks);
    --left;
    const bool ends = left == 0 || t + 1 == tiles;
    wgmma_wait<1>();
    if (ends) add_scaled<Load, kHalf>(f_low, low, side, scales, q, r, p.end);
    wgmma_wait<0>();
    if (ends) {
      add_scaled<Load, kHalf>(f_high, high, side, scales, q, r + kHalf, p.end);
      if (t + 1 < tiles) scales = Scales(side, scales.index + 1);
      left = per_scale;
    }
    place = place + 1 == S::kStages ? 0 : place + 1;
  }
  store<kHalf>(q, f_low, p.column, r, p.end);
  store<kHalf>(q, f_high, p.column, r + kHalf, p.end);
  sync_threads();  // the tiles have been read
}

// grid: row tiles, outputs, groups.
template <class Load>
LORRY_KERNEL(kThreads)
quant_wide_kernel(QuantArgs q) {
  begin_kernel();
  const Place p = place_of(q.linear);
  const auto step = static_cast<int32_t>(kWidest * gridDim.x);
  for (int32_t r = p.begin + static_cast<int32_t>(kWidest * blockIdx.x); r < p.end; r += step) {
    if (p.end - r <= kWidest / 2) {
      multiply_tile<Load, kWidest / 4>(q, p, r);
    } else {
      multiply_tile<Load, kWidest / 2>(q, p, r);
    }
  }
}

template <class Load>
void multiply_all(Stream s, const QuantArgs& q) {
  const LinearArgs& a = q.linear;
  const int64_t tiles = ceil_div(expected_rows(a), kWidest);
  const Grid grid{tiles < 1024 ? tiles : 1024, ceil_div(a.out, kRowBlock * kWarps), a.groups};
  start<QuantArgs, quant_wide_kernel<Load>>("quant_wide", grid, kThreads, kShared, s, q);
}

}  // namespace

void quant_wide(Stream s, const QuantArgs& q) {
  if (q.linear.plan.values == Values::s4) return multiply_all<LoadS4>(s, q);
  multiply_all<LoadS8>(s, q);
}

}  // namespace lorry::cuda
