// adapt, the pairs: t = scale * A x, then y += B t, one fma for each rank in order.
#include "ops/cuda/kernels.h"
#include "ops/cuda/launch.h"
#include "ops/cuda/rows_times.h"
#include "ops/cuda/segments.h"

namespace lorry::cuda {

namespace {

// Of a shrink: few enough for a linear's blocks to find room beside them.
constexpr int kShrinkWarps = 8;

// Where the sums of a row begin.
LORRY_DEVICE float* sums_of(const AdaptArgs& a, int site, int64_t row) {
  return a.t + (int64_t{site} * a.rows + row) * a.t_pitch;
}

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

// Brings bytes near, by all threads of a shrink.
LORRY_DEVICE void prefetch_all(const void* from, int64_t bytes) {
  constexpr int kLine = 128;
  for (int64_t at = int64_t{threadIdx.x} * kLine; at < bytes; at += 32 * kShrinkWarps * kLine) {
    prefetch(static_cast<const unsigned char*>(from) + at);
  }
}

// B, if it is small: a linear of few rows adds it within microseconds.
LORRY_DEVICE void prefetch_b(const Patch& patch, int out) {
  constexpr int64_t kMost = int64_t{1} << 20;
  const int64_t bytes = (int64_t{out} + kPanelB - 1) / kPanelB * kPanelB * patch.rank * 2;
  if (bytes <= kMost) prefetch_all(patch.b, bytes);
}

// t of 16 ranks at a site. wait(): from there on x can be read, and t written.
template <class T, class Wait>
LORRY_DEVICE void shrink_rows(const AdaptArgs& a, const TileRows& rows, int site, int rank,
                              Wait&& wait) {
  constexpr int kAhead = 8;
  float* shared = reinterpret_cast<float*>(shared_bytes());
  const Patch& patch = rows.patch[site];
  const int chunks = (a.site[site].in + kChunk - 1) / kChunk;
  const int block_bytes = chunks * kRankBlock * kChunk * 2;
  const unsigned char* w =
      static_cast<const unsigned char*>(patch.a) + int64_t{rank / kRankBlock} * block_bytes;
  const bool second = rank + kRankBlock < patch.rank;
  // A warp's loads then wait for each other, but only once for the memory.
  if (a.pairs != nullptr) prefetch_all(w, (second ? 2 : 1) * block_bytes);
  if (a.pairs != nullptr && a.early && rank == 0) prefetch_b(patch, a.site[site].out);
  const XRows<1> x(a.x, a.x_pitch, rows.begin, rows.end, a.site[site].in);
  const float total = sum_by_parts<T, kShrinkWarps, kAhead>(
      shared,
      [&](int chunk) {
        return load_ranks(w + int64_t{chunk} * kRankBlock * kChunk * 2, second, block_bytes);
      },
      x, chunks, wait);
  const auto at = static_cast<int>(threadIdx.x);
  if (at >= 128) return;
  const int row = at / 16;
  const int r = rank + at % 16;
  if (rows.begin + row < rows.end && r < patch.rank) {
    sums_of(a, site, rows.begin + row)[r] = patch.scale * total;
  }
}

// grid: tiles of rows, sites x blocks of 16 ranks, segments of a tile.
template <class T>
LORRY_KERNEL(32 * kShrinkWarps, 2)
shrink_kernel(AdaptArgs a) {
  let_next_start();
  const auto tile = static_cast<int32_t>(blockIdx.x);
  const auto slot = static_cast<int32_t>(blockIdx.z);
  const auto site = static_cast<int>(blockIdx.y) % a.sites;
  const auto rank = static_cast<int>(blockIdx.y) / a.sites * 16;
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
  // While A is on its way; a pair is written when the last linear has read its own.
  const auto describe_and_wait = [&] {
    const bool describes =
        a.pairs != nullptr && rank == 0 && slot == 0 && warp_index() == kShrinkWarps - 1;
    const RowPair pair = describes ? pair_of_row(a, tile, site) : RowPair{nullptr, 0};
    if (a.early) wait();
    const int64_t row = int64_t{tile} * kTileRows + lane_index();
    if (describes && lane_index() < kTileRows && row < a.rows) a.pairs[site * a.rows + row] = pair;
  };
  const TileRows rows = rows_of_tile(a, tile, slot);
  if (rows.begin != rows.end && rank < rows.patch[site].rank) {
    shrink_rows<T>(a, rows, site, rank, describe_and_wait);
  } else {
    describe_and_wait();
  }
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

constexpr int kExpandThreads = 256;

// Neighbours of B's outputs that a thread has, as they lie in memory.
constexpr int kWide = 8;
template <class T>
struct Wide16 {
  Word4 words;
  LORRY_DEVICE static Wide16 load(const T* b) { return {*reinterpret_cast<const Word4*>(b)}; }
  LORRY_DEVICE float at(int i) const {
    const uint32_t word = i < 2 ? words.x : i < 4 ? words.y : i < 6 ? words.z : words.w;
    return i % 2 == 0 ? T::low(word) : T::high(word);
  }
};
struct WideF32 {
  float v[kWide];
  LORRY_DEVICE static WideF32 load(const float* b) {
    WideF32 wide;
    LORRY_UNROLL
    for (int i = 0; i < kWide; ++i) wide.v[i] = b[i];
    return wide;
  }
  LORRY_DEVICE float at(int i) const { return v[i]; }
};
template <class T>
struct WideOf {
  using Type = Wide16<T>;
};
template <>
struct WideOf<float> {
  using Type = WideF32;
};

// Outputs of one row: n of kWide are there.
LORRY_DEVICE bool is_wide(const float* y, int n) {
  return n == kWide && reinterpret_cast<uintptr_t>(y) % 16 == 0;
}
LORRY_DEVICE void load_outputs(float (&sum)[kWide], const float* y, int n) {
  LORRY_UNROLL
  for (int h = 0; h < kWide; h += 4) {
    if (is_wide(y, n)) {
      const Word4 w = *reinterpret_cast<const Word4*>(y + h);
      sum[h] = as_float(w.x);
      sum[h + 1] = as_float(w.y);
      sum[h + 2] = as_float(w.z);
      sum[h + 3] = as_float(w.w);
    } else {
      LORRY_UNROLL
      for (int i = h; i < h + 4; ++i) sum[i] = i < n ? y[i] : 0.0F;
    }
  }
}
LORRY_DEVICE void store_outputs(float* y, const float (&sum)[kWide], int n) {
  LORRY_UNROLL
  for (int h = 0; h < kWide; h += 4) {
    if (is_wide(y, n)) {
      *reinterpret_cast<Word4*>(y + h) = {as_bits(sum[h]), as_bits(sum[h + 1]), as_bits(sum[h + 2]),
                                          as_bits(sum[h + 3])};
    } else {
      LORRY_UNROLL
      for (int i = h; i < h + 4; ++i) {
        if (i < n) y[i] = sum[i];
      }
    }
  }
}

// The first n_outputs of kWide outputs of the kRows rows from y on; the first n are there.
template <int kRows, class T>
LORRY_DEVICE void expand_rows(float* y, int64_t pitch, int n, int n_outputs, const T* b,
                              const float* t, int rank) {
  using Wide = typename WideOf<T>::Type;
  // Ranks loaded together.
  constexpr int kAhead = (kRows == 1 ? 32 : 8) / static_cast<int>(sizeof(T));
  float sum[kRows][kWide];
  LORRY_UNROLL
  for (int i = 0; i < kRows; ++i) load_outputs(sum[i], y + i * pitch, i < n ? n_outputs : 0);
  for (int first = 0; first < rank; first += kAhead) {
    Wide w[kAhead];
    LORRY_UNROLL
    for (int r = 0; r < kAhead; ++r) {
      w[r] = Wide::load(b + int64_t{first + r < rank ? first + r : rank - 1} * kPanelB);
    }
    LORRY_UNROLL
    for (int r = 0; r < kAhead; ++r) {
      if (first + r >= rank) break;
      LORRY_UNROLL
      for (int i = 0; i < kRows; ++i) {
        if (i >= n) continue;
        const float scaled = t[i * rank + first + r];
        LORRY_UNROLL
        for (int o = 0; o < kWide; ++o) sum[i][o] = fmaf(scaled, w[r].at(o), sum[i][o]);
      }
    }
  }
  LORRY_UNROLL
  for (int i = 0; i < kRows; ++i) store_outputs(y + i * pitch, sum[i], i < n ? n_outputs : 0);
}

// Brings near what the threads of a panel read of B, before they have t.
template <class T>
LORRY_DEVICE void prefetch_panel(const T* b, int rank) {
  constexpr int kThreads = kPanelB / kWide;
  constexpr int kOfLine = 128 / static_cast<int>(sizeof(T));
  for (int at = static_cast<int>(threadIdx.x) % kThreads * kOfLine; at < rank * kPanelB;
       at += kThreads * kOfLine) {
    prefetch(b + at);
  }
}

// grid: tiles of rows, sites x blocks that share parts of kWide kExpandThreads outputs, segments of
// a tile.
template <class T>
LORRY_KERNEL(kExpandThreads)
expand_kernel(AdaptArgs a) {
  begin_kernel();
  constexpr int kPart = kWide * kExpandThreads;
  float* shared = reinterpret_cast<float*>(shared_bytes());
  const auto site = static_cast<int>(blockIdx.y) % a.sites;
  const int64_t part = int64_t{blockIdx.y} / a.sites;
  const int64_t parts = gridDim.y / static_cast<unsigned>(a.sites);
  const TileRows rows =
      rows_of_tile(a, static_cast<int32_t>(blockIdx.x), static_cast<int32_t>(blockIdx.z));
  const int64_t out = a.site[site].out;
  if (rows.begin == rows.end || part * kPart >= out) return;
  const Patch& patch = rows.patch[site];
  if (patch.rank == 0) return;
  const int64_t begin = part * kPart + threadIdx.x * kWide;
  const auto panel_of = [&](int64_t o) {
    return static_cast<const T*>(patch.b) + o / kPanelB * kPanelB * patch.rank;
  };
  if (begin < out) prefetch_panel(panel_of(begin), patch.rank);
  const int n = rows.end - rows.begin;
  for (int i = static_cast<int>(threadIdx.x); i < n * patch.rank; i += kExpandThreads) {
    shared[i] = sums_of(a, site, rows.begin + i / patch.rank)[i % patch.rank];
  }
  sync_threads();
  for (int64_t o = begin; o < out; o += parts * kPart) {
    const T* b = panel_of(o) + o % kPanelB;
    float* y = a.y + rows.begin * a.y_pitch + column_of(a.site[site], o);
    const int n_outputs = out - o < kWide ? static_cast<int>(out - o) : kWide;
    if (n == 1) {
      expand_rows<1>(y, a.y_pitch, n, n_outputs, b, shared, patch.rank);
      continue;
    }
    constexpr int kRows = 4;  // more take too many registers
    for (int r = 0; r < n; r += kRows) {
      expand_rows<kRows>(y + r * a.y_pitch, a.y_pitch, n - r, n_outputs, b, shared + r * patch.rank,
                         patch.rank);
    }
  }
}

// What a patch does to row `row` of the embedding.
template <class T>
LORRY_DEVICE void adapt_row(const AdaptEmbeddingArgs& e, const Patch& patch, int64_t row,
                            float* t) {
  const AdaptArgs& a = e.adapt;
  const int32_t id = e.ids[row];
  float* y = a.y + row * a.y_pitch;
  const int64_t dim = a.site[0].out;
  int32_t own = -1;
  for (int32_t i = 0; i < patch.n_tokens && own < 0; ++i) {
    if (patch.tokens[i] == id) own = i;
  }
  const auto* pair = static_cast<const T*>(patch.a);
  if (own < 0) {
    for (int r = static_cast<int>(threadIdx.x); r < patch.rank; r += kExpandThreads) {
      t[r] = widen(pair[int64_t{id} * patch.rank + r]) * patch.scale;
    }
  }
  sync_threads();
  for (int64_t o = threadIdx.x; o < dim; o += kExpandThreads) {
    if (own >= 0) {
      y[o] = widen(reinterpret_cast<const T*>(patch.token_rows)[own * dim + o]);
      continue;
    }
    float sum = patch.weight == nullptr
                    ? y[o]
                    : widen(reinterpret_cast<const T*>(patch.weight)[id * dim + o]);
    const int64_t first = o / kPanelB * kPanelB * patch.rank + o % kPanelB;
    for (int r = 0; r < patch.rank; ++r) {
      sum = fmaf(t[r], widen(static_cast<const T*>(patch.b)[first + int64_t{r} * kPanelB]), sum);
    }
    y[o] = patch.gain == nullptr ? sum : sum * patch.gain[o];
  }
}

// A block a row.
template <class T>
LORRY_KERNEL(kExpandThreads)
adapt_embedding_kernel(AdaptEmbeddingArgs e) {
  begin_kernel();
  float* t = reinterpret_cast<float*>(shared_bytes());
  const auto row = static_cast<int32_t>(blockIdx.x);
  if (e.ids[row] < 0) return;
  for (int slot = 0; slot < kTileRows; ++slot) {
    const TileRows rows = rows_of_tile(e.adapt, row / kTileRows, slot);
    if (rows.begin == rows.end) return;
    if (row >= rows.begin && row < rows.end) return adapt_row<T>(e, *rows.patch, row, t);
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
  const Grid grid{tiles, a.sites * ceil_div(a.max_rank, 16), slots};
  with_16_bits(act, [&](auto x) {
    start<AdaptArgs, shrink_kernel<decltype(x)>>("shrink", grid, 32 * kShrinkWarps, kPartsShared, s,
                                                 a);
  });
}

void add_pairs(Stream s, const AdaptArgs& a, Act act) {
  shrink(s, a, act);
  const int64_t tiles = ceil_div(a.rows, kTileRows);
  const int64_t slots = a.n_segments < kTileRows ? a.n_segments : kTileRows;
  // As many blocks as fill a large device a few times over: each has to find its rows first.
  constexpr int64_t kBlocks = 1024;
  const int64_t parts = ceil_div(a.max_out, kWide * kExpandThreads);
  const int64_t shares = ceil_div(kBlocks, tiles * slots * a.sites);
  const Grid grid{tiles, a.sites * (shares < parts ? shares : parts), slots};
  const size_t shared = sizeof(float) * static_cast<size_t>(kTileRows * a.max_rank);
  with_act(act, [&](auto b) {
    start<AdaptArgs, expand_kernel<decltype(b)>>("expand", grid, kExpandThreads, shared, s, a);
  });
}

void adapt_embedding(Stream s, const AdaptEmbeddingArgs& e, Act act) {
  const size_t shared = sizeof(float) * static_cast<size_t>(e.adapt.max_rank + 1);
  const Grid grid{e.adapt.rows};
  with_act(act, [&](auto t) {
    start<AdaptEmbeddingArgs, adapt_embedding_kernel<decltype(t)>>("adapt_embedding", grid,
                                                                   kExpandThreads, shared, s, e);
  });
}

}  // namespace lorry::cuda
