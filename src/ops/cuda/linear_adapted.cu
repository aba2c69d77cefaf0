// Linears of few rows that add the pairs of adapters to their own sums.
#include "ops/cuda/decode.h"
#include "ops/cuda/launch.h"

namespace lorry::cuda {

namespace {

// Where an output of the linear is; site -1: none has it.
struct Place {
  int site;
  int32_t o;
};
LORRY_DEVICE Place place_of(const AdaptArgs& a, int64_t column) {
  Place place{-1, 0};
  LORRY_UNROLL
  for (int s = 0; s < kMaxSites; ++s) {
    if (s >= a.sites) break;
    const PatchSite& site = a.site[s];
    const auto from = static_cast<int32_t>(column - site.column);
    const auto stride = static_cast<int32_t>(site.panel_stride);
    const int32_t o = from / stride * kPanelB + from % stride;
    if (from >= 0 && from % stride < kPanelB && o < site.out) place = {s, o};
  }
  return place;
}

// What a row's pair does to one output: n ranks of B, kPanelB apart, and their t.
struct Ranks {
  const uint16_t* b;
  const float* t;
  int32_t n;
};
LORRY_DEVICE Ranks ranks_of(const AdaptArgs& a, const Place& place, int32_t row, int32_t end) {
  if (place.site < 0 || row >= end) return {nullptr, nullptr, 0};
  const int64_t at = int64_t{place.site} * a.rows + row;
  const RowPair pair = a.pairs[at];
  const int64_t panel = int64_t{place.o / kPanelB} * kPanelB * pair.rank;
  return {static_cast<const uint16_t*>(pair.b) + panel + place.o % kPanelB, a.t + at * a.t_pitch,
          pair.rank};
}

// v += B t, in order of the ranks, of which kAhead are loaded at once for all items: fewer
// where there are many, since more registers would be fewer blocks.
template <class T, int kItems>
LORRY_DEVICE void add_ranks(float (&v)[kItems], const Ranks (&ranks)[kItems]) {
  constexpr int kAhead = kItems > 4 ? 4 : kItems > 2 ? 8 : 16;
  int32_t most = 0;
  LORRY_UNROLL
  for (int i = 0; i < kItems; ++i) most = ranks[i].n > most ? ranks[i].n : most;
  for (int32_t first = 0; first < most; first += kAhead) {
    uint16_t b[kItems][kAhead] = {};
    Word4 t[kItems][kAhead / 4] = {};
    LORRY_UNROLL
    for (int i = 0; i < kItems; ++i) {
      if (first >= ranks[i].n) continue;
      const int32_t last = ranks[i].n - 1 - first;  // loaded again in place of those beyond it
      const uint16_t* from = ranks[i].b + int64_t{first} * kPanelB;
      LORRY_UNROLL
      for (int r = 0; r < kAhead; ++r) b[i][r] = from[(r < last ? r : last) * kPanelB];
      LORRY_UNROLL
      for (int q = 0; q < kAhead / 4; ++q) {
        t[i][q] = reinterpret_cast<const Word4*>(ranks[i].t + first)[q];
      }
    }
    LORRY_UNROLL
    for (int r = 0; r < kAhead; ++r) {
      LORRY_UNROLL
      for (int i = 0; i < kItems; ++i) {
        const Word4& four = t[i][r / 4];
        const uint32_t word = r % 4 == 0   ? four.x
                              : r % 4 == 1 ? four.y
                              : r % 4 == 2 ? four.z
                                           : four.w;
        if (first + r < ranks[i].n) v[i] = fmaf(as_float(word), T::from(b[i][r]), v[i]);
      }
    }
  }
}

// x can be read. All threads of a block call it.
LORRY_DEVICE void wait_for_rows(const AdaptArgs& a) {
  if (threadIdx.x == 0) wait_for_flag(a.ready, a.turn);
  sync_threads();
}

template <class Load, int kN>
LORRY_KERNEL(32 * kSlices)
adapted_kernel(AdaptedLinearArgs a) {
  decode_block<Load, kN>(
      a.linear, [&] { wait_for_rows(a.adapt); },
      [&](float(&v)[kThreadRows<kN>], int64_t column, Rows rows) {
        wait_for_previous();
        const Place place = place_of(a.adapt, column);
        Ranks ranks[kThreadRows<kN>];
        LORRY_UNROLL
        for (int j = 0; j < kThreadRows<kN>; ++j) {
          ranks[j] = ranks_of(a.adapt, place, rows.begin + kStoredRows * j, rows.end);
        }
        add_ranks<typename Load::Act>(v, ranks);
        LORRY_UNROLL
        for (int j = 0; j < kThreadRows<kN>; ++j) {
          const int32_t row = rows.begin + kStoredRows * j;
          if (row < rows.end) a.linear.y[row * a.linear.y_pitch + column] = v[j];
        }
      });
  wait_for_previous();  // so that all that came before has ended when this kernel has
}

template <class Load, int kN>
LORRY_KERNEL(32 * kSlices, 4)  // as many as find shared memory
adapted_glu_kernel(AdaptedLinearArgs a) {
  decode_glu_block<Load, kN>(
      a.linear, [&] { wait_for_rows(a.adapt); },
      [&](float(&v)[2][kThreadRows<kN>], int64_t column, Rows rows) {
        constexpr int kRows = kThreadRows<kN>;
        wait_for_previous();
        Ranks ranks[2 * kRows];
        float sum[2 * kRows];
        LORRY_UNROLL
        for (int part = 0; part < 2; ++part) {
          const Place place = place_of(a.adapt, column / 64 * 128 + 64 * part + column % 64);
          LORRY_UNROLL
          for (int j = 0; j < kRows; ++j) {
            sum[part * kRows + j] = v[part][j];
            ranks[part * kRows + j] =
                ranks_of(a.adapt, place, rows.begin + kStoredRows * j, rows.end);
          }
        }
        add_ranks<typename Load::Act>(sum, ranks);
        LORRY_UNROLL
        for (int i = 0; i < 2 * kRows; ++i) v[i / kRows][i % kRows] = sum[i];
        store_glu<typename Load::Act, kN>(a.linear.glu, v, column, rows);
      });
  wait_for_previous();
}

template <class Load>
LORRY_KERNEL(32 * kThinWarps)
adapted_thin_kernel(AdaptedLinearArgs a) {
  thin_block<Load>(
      a.linear, [&] { wait_for_rows(a.adapt); },
      [&](float v, int64_t column, int32_t row) {
        wait_for_previous();
        const Ranks ranks[1] = {ranks_of(a.adapt, place_of(a.adapt, column), row, a.linear.rows)};
        float sum[1] = {v};
        add_ranks<typename Load::Act>(sum, ranks);
        a.linear.y[row * a.linear.y_pitch + column] = sum[0];
      });
  wait_for_previous();
}

template <class Load, int kN>
void decode(Stream s, const AdaptedLinearArgs& a) {
  if (a.linear.glu.y != nullptr) {
    const Grid grid{ceil_div(a.linear.glu.cols, kRowBlock), groups_with_rows(a.linear)};
    return start<AdaptedLinearArgs, adapted_glu_kernel<Load, kN>>(
        "linear_glu_adapted", grid, 32 * kSlices, slices_shared<Load, kN, 2>(), s, a);
  }
  const Grid grid{ceil_div(a.linear.out, kRowBlock), groups_with_rows(a.linear)};
  start<AdaptedLinearArgs, adapted_kernel<Load, kN>>("linear_adapted", grid, 32 * kSlices,
                                                     slices_shared<Load, kN, 1>(), s, a);
}

template <class Load>
void multiply(Stream s, const AdaptedLinearArgs& a) {
  if (is_thin(a.linear)) {
    return start<AdaptedLinearArgs, adapted_thin_kernel<Load>>(
        "linear_thin_adapted", thin_grid(a.linear), 32 * kThinWarps, kPartsShared, s, a);
  }
  if (expected_rows(a.linear) <= 8) return decode<Load, 1>(s, a);
  decode<Load, 2>(s, a);
}

}  // namespace

void linear_adapted(Stream s, const AdaptedLinearArgs& a) {
  shrink(s, a.adapt, a.linear.act);
  with_load(a.linear, [&](auto load) { multiply<decltype(load)>(s, a); });
}

}  // namespace lorry::cuda
