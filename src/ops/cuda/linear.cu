// linear with x in bf16, and weights in bf16 or fp8 (which are widened; their scale comes last).
#include "ops/cuda/activation.h"
#include "ops/cuda/groups.h"
#include "ops/cuda/kernels.h"
#include "ops/cuda/launch.h"
#include "ops/cuda/rows_times.h"

namespace lorry::cuda {

namespace {

// The first part of what a warp is about to read.
template <class Load>
LORRY_DEVICE void prefetch_slice(const unsigned char* w, int chunks) {
  constexpr int kLine = 128;
  constexpr int kLines = 8;  // of a thread
  const int64_t begin = int64_t{slice_begin(chunks, warp_index())} * Load::kBytes;
  const int64_t end = int64_t{slice_begin(chunks, warp_index() + 1)} * Load::kBytes;
  LORRY_UNROLL
  for (int i = 0; i < kLines; ++i) {
    const int64_t at = begin + (i * 32 + lane_index()) * kLine;
    if (at < end) prefetch(w + at);
  }
}

// Decode: the group of this block, of those with rows; -1: there are not so many. All lanes call it.
LORRY_DEVICE int own_group(const LinearArgs& a) {
  const auto nth = static_cast<int>(blockIdx.y);
  return a.begin == nullptr ? nth : group_with_rows(a, nth);
}
int64_t groups_with_rows(const LinearArgs& a) { return a.groups < a.rows ? a.groups : a.rows; }

// Row tile after row tile of a group: f(x, first row, end of the group).
template <int kN, class F>
LORRY_DEVICE void each_tile(const LinearArgs& a, int group, F&& f) {
  const Rows rows = rows_of(a, group);
  const auto step = static_cast<int32_t>(8 * kN * gridDim.z);
  for (int32_t r = rows.begin + static_cast<int32_t>(8 * kN * blockIdx.z); r < rows.end;
       r += step) {
    f(XRows<kN>(a.x, a.x_pitch, r, rows.end, a.plan.in), r, rows.end);
  }
}

// Few rows of a group: a block of kSlices warps has one row block, a warp a slice of its inputs, so
// that weights stream through all of the memory's channels. grid: row blocks, groups that may have
// rows, row tiles.
template <class Load, int kN>
LORRY_KERNEL(32 * kSlices)
decode_kernel(LinearArgs a) {
  float* shared = reinterpret_cast<float*>(shared_bytes());
  const unsigned char* w = a.w + blockIdx.x * a.plan.block_bytes();
  const auto chunks = static_cast<int>(a.plan.chunks());
  if (a.begin == nullptr) prefetch_slice<Load>(w, chunks);
  wait_for_previous();
  const int group = own_group(a);
  if (group < 0) return;
  w += group * a.group_bytes;
  const RowBlocks<1> blocks{w, 0, chunks};
  const int output = static_cast<int>(threadIdx.x) % kRowBlock;
  const int64_t column = int64_t{blockIdx.x} * kRowBlock + output;
  each_tile<kN>(a, group, [&](const XRows<kN>& x, int32_t r, int32_t end) {
    float sum[1][8 * kN / kStoredRows];
    multiply_by_slices<Load, kN>(sum, shared, blocks, x);
    let_next_start();
    if (column >= a.out) return;
    const float scale = scale_of(a.plan, w, output);
    LORRY_UNROLL
    for (int j = 0; j < 8 * kN / kStoredRows; ++j) {
      const int32_t row = r + static_cast<int32_t>(threadIdx.x) / kRowBlock + kStoredRows * j;
      if (row < end) a.y[row * a.y_pitch + column] = sum[0][j] * scale;
    }
  });
}

// The same for gate and up, which lie interleaved by 64: a block has a row block of both. grid: row
// blocks of one of them, groups that may have rows.
constexpr int kGluBlocks = 64 / kRowBlock;
template <class Load, int kN>
LORRY_KERNEL(32 * kSlices)
decode_glu_kernel(LinearArgs a) {
  wait_for_previous();
  float* shared = reinterpret_cast<float*>(shared_bytes());
  const int64_t bytes = a.plan.block_bytes();
  const auto block = static_cast<int>(blockIdx.x);
  const int group = own_group(a);
  if (group < 0) return;
  const unsigned char* gate = a.w + group * a.group_bytes +
                              (block / kGluBlocks * 2 * kGluBlocks + block % kGluBlocks) * bytes;
  const unsigned char* up = gate + kGluBlocks * bytes;
  const RowBlocks<2> blocks{gate, up - gate, static_cast<int>(a.plan.chunks())};
  const int output = static_cast<int>(threadIdx.x) % kRowBlock;
  const int64_t column = int64_t{block} * kRowBlock + output;
  each_tile<kN>(a, group, [&](const XRows<kN>& x, int32_t r, int32_t end) {
    float sum[2][8 * kN / kStoredRows];
    multiply_by_slices<Load, kN>(sum, shared, blocks, x);
    let_next_start();
    if (column >= a.glu.cols) return;
    const float gate_scale = scale_of(a.plan, gate, output);
    const float up_scale = scale_of(a.plan, up, output);
    auto* y = static_cast<uint16_t*>(a.glu.y) + column;
    LORRY_UNROLL
    for (int j = 0; j < 8 * kN / kStoredRows; ++j) {
      const int32_t row = r + static_cast<int32_t>(threadIdx.x) / kRowBlock + kStoredRows * j;
      if (row >= end) continue;
      y[row * a.glu.pitch] =
          to_bf16(gated(a.glu.activation, sum[0][j] * gate_scale, sum[1][j] * up_scale));
    }
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
  if (a.glu.y != nullptr) return expected <= 8 ? decode_glu<Load, 1>(s, a) : decode_glu<Load, 2>(s, a);
  if (expected <= 8) return decode<Load, 1>(s, a, 1);
  if (expected <= 16) return decode<Load, 2>(s, a, 1);
  if (expected <= 32) return decode<Load, 4>(s, a, 1);
  if (expected <= 64) return prefill<Load, 4>(s, a, ceil_div(expected, 32));
  const int64_t tiles = ceil_div(a.groups == 1 ? rows : 3 * rows, 64);
  prefill<Load, 8>(s, a, tiles < 1024 ? tiles : 1024);
}

}  // namespace

bool linear_bf16_can_glu(const LinearArgs& a) { return expected_rows(a) <= 16; }

void linear_bf16(Stream s, const LinearArgs& a) {
  if (a.plan.values == Values::fp8) return multiply_all<LoadFp8>(s, a);
  multiply_all<LoadBf16>(s, a);
}

}  // namespace lorry::cuda
