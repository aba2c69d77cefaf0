// adapt, the pairs: y += B t, one fma for each rank in order; and the embedding's.
#include "ops/cuda/kernels.h"
#include "ops/cuda/launch.h"
#include "ops/cuda/numbers.h"
#include "ops/cuda/segments.h"

namespace lorry::cuda {

namespace {

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
