// linear with x in bf16 or f16, and weights in its type or fp8 (which are widened; their scale
// comes last).
#include "ops/cuda/decode.h"
#include "ops/cuda/kernels.h"
#include "ops/cuda/launch.h"

namespace lorry::cuda {

namespace {

// grid: row blocks, groups, row tiles.
template <class Load, int kN>
LORRY_KERNEL(32 * kSlices)
decode_kernel(LinearArgs a) {
  decode_block<Load, kN>(
      a, [] { wait_for_previous(); },
      [&](const float(&v)[kThreadRows<kN>], int64_t column, Rows rows) {
        LORRY_UNROLL
        for (int j = 0; j < kThreadRows<kN>; ++j) {
          const int32_t row = rows.begin + kStoredRows * j;
          if (row < rows.end) a.y[row * a.y_pitch + column] = v[j];
        }
      });
}

// grid: row blocks of gate, groups.
template <class Load, int kN>
LORRY_KERNEL(32 * kSlices)
decode_glu_kernel(LinearArgs a) {
  decode_glu_block<Load, kN>(
      a, [] { wait_for_previous(); },
      [&](const float(&v)[2][kThreadRows<kN>], int64_t column, Rows rows) {
        store_glu<typename Load::Act, kN>(a.glu, v, column, rows);
      });
}

constexpr int kPrefillWarps = 4;
constexpr int kPrefillBlocks = 2;  // row blocks of a warp

// Many rows: a warp has kPrefillBlocks row blocks and 8 kN rows, slice after slice.
template <class Load, int kN>
LORRY_KERNEL(32 * kPrefillWarps)
prefill_kernel(LinearArgs a) {
  begin_kernel();
  constexpr int kM = kPrefillBlocks;
  const Rows rows = rows_of(a, static_cast<int>(blockIdx.y));
  const int64_t blocks = (a.out + kRowBlock - 1) / kRowBlock;
  const int64_t block = (int64_t{blockIdx.x} * kPrefillWarps + warp_index()) * kM;
  if (block >= blocks) return;
  const int64_t block_bytes = a.plan.block_bytes();
  const unsigned char* w = a.w + blockIdx.y * a.group_bytes + block * block_bytes;
  // A second row block that is not there is the first once more.
  const int64_t next = block + 1 < blocks ? block_bytes : 0;
  const auto chunks = static_cast<int>(a.plan.chunks());
  const auto step = static_cast<int32_t>(8 * kN * gridDim.z);
  for (int32_t r = rows.begin + static_cast<int32_t>(8 * kN * blockIdx.z); r < rows.end;
       r += step) {
    const XRows<kN> x(a.x, a.x_pitch, r, rows.end, a.plan.in);
    Float4 total[kM][kN] = {};
    for (int s = 0; s < kSlices; ++s) {
      Float4 part[kM][kN] = {};
      multiply<Load, kM, kN>(part, w, next, x, slice_begin(chunks, s), slice_begin(chunks, s + 1));
      LORRY_UNROLL
      for (int m = 0; m < kM; ++m) {
        LORRY_UNROLL
        for (int n = 0; n < kN; ++n) {
          LORRY_UNROLL
          for (int i = 0; i < 4; ++i) {
            total[m][n].v[i] = s == 0 ? part[m][n].v[i] : total[m][n].v[i] + part[m][n].v[i];
          }
        }
      }
    }
    LORRY_UNROLL
    for (int m = 0; m < kM; ++m) {
      LORRY_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int o = lane_index() / 4 + i / 2 * 8;
        const int64_t column = (block + m) * kRowBlock + o;
        if (block + m >= blocks || column >= a.out) continue;
        const float scale = scale_of(a.plan, w + m * next, o);
        LORRY_UNROLL
        for (int n = 0; n < kN; ++n) {
          const int32_t row = r + 8 * n + lane_index() % 4 * 2 + i % 2;
          if (row < rows.end) a.y[row * a.y_pitch + column] = total[m][n].v[i] * scale;
        }
      }
    }
  }
}

template <class Load, int kN>
void decode(Stream s, const LinearArgs& a, int64_t row_tiles) {
  const Grid grid{ceil_div(a.out, kRowBlock), groups_with_rows(a), row_tiles};
  start<LinearArgs, decode_kernel<Load, kN>>("linear", grid, 32 * kSlices,
                                             slices_shared<Load, kN, 1>(), s, a);
}
template <class Load, int kN>
void decode_glu(Stream s, const LinearArgs& a) {
  const Grid grid{ceil_div(a.glu.cols, kRowBlock), groups_with_rows(a)};
  start<LinearArgs, decode_glu_kernel<Load, kN>>("linear_glu", grid, 32 * kSlices,
                                                 slices_shared<Load, kN, 2>(), s, a);
}
template <class Load, int kN>
void prefill(Stream s, const LinearArgs& a, int64_t row_tiles) {
  const Grid grid{ceil_div(ceil_div(a.out, kRowBlock), kPrefillWarps * kPrefillBlocks), a.groups,
                  row_tiles};
  start<LinearArgs, prefill_kernel<Load, kN>>("linear", grid, 32 * kPrefillWarps, 0, s, a);
}

// Which kernel: by the rows that a group has on average. Every choice gives the same bits.
template <class Load>
void multiply_all(Stream s, const LinearArgs& a) {
  const int64_t rows = ceil_div(a.rows, a.groups);
  // Groups differ: those with more rows than a tile go on in the same block.
  const int64_t expected = expected_rows(a);
  if (a.glu.y != nullptr)
    return expected <= 8 ? decode_glu<Load, 1>(s, a) : decode_glu<Load, 2>(s, a);
  if (expected <= 8) return decode<Load, 1>(s, a, 1);
  if (expected <= kFewRows) return decode<Load, 2>(s, a, 1);
  if (expected <= 32) return decode<Load, 4>(s, a, 1);
  if (expected <= 64) return prefill<Load, 4>(s, a, ceil_div(expected, 32));
  const int64_t tiles = ceil_div(a.groups == 1 ? rows : 3 * rows, 64);
  prefill<Load, 8>(s, a, tiles < 1024 ? tiles : 1024);
}

}  // namespace

void linear_mma(Stream s, const LinearArgs& a) {
  with_load(a, [&](auto load) { multiply_all<decltype(load)>(s, a); });
}

}  // namespace lorry::cuda
