// A linear of few rows: what a block does of it, with or without pairs of adapters at its end.
#pragma once
#include "ops/cuda/activation.h"
#include "ops/cuda/groups.h"
#include "ops/cuda/kernels.h"
#include "ops/cuda/launch.h"
#include "ops/cuda/rows_times.h"

namespace lorry::cuda {

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

// The group of this block, of those with rows; -1: there are not so many. All lanes call it.
LORRY_DEVICE int own_group(const LinearArgs& a) {
  const auto nth = static_cast<int>(blockIdx.y);
  return a.begin == nullptr ? nth : group_with_rows(a, nth);
}

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

// Rows of a thread: rows.begin, and each kStoredRows further on, before rows.end.
template <int kN>
constexpr int kThreadRows = 8 * kN / kStoredRows;

// Few rows of a group: a block of kSlices warps has row block x, a warp a slice of its inputs, so
// that weights stream through all of the memory's channels. wait(): from there on x can be read.
// finish(values, column, rows): a thread's results. tail(room, rows): of each warp, see ChunkRing.
template <class Load, int kN, class Wait, class Finish, class Tail = NoTail>
LORRY_DEVICE void decode_block(const LinearArgs& a, Wait&& wait, Finish&& finish,
                               Tail&& tail = {}) {
  float* shared = reinterpret_cast<float*>(shared_bytes());
  const unsigned char* w = a.w + blockIdx.x * a.plan.block_bytes();
  const auto chunks = static_cast<int>(a.plan.chunks());
  if (a.begin == nullptr) prefetch_slice<Load>(w, chunks);
  wait();
  const int group = own_group(a);
  if (group < 0) return;
  w += group * a.group_bytes;
  const RowBlocks<1> blocks{w, 0, chunks};
  const int output = static_cast<int>(threadIdx.x) % kRowBlock;
  const int64_t column = int64_t{blockIdx.x} * kRowBlock + output;
  each_tile<kN>(a, group, [&](const XRows<kN>& x, int32_t r, int32_t end) {
    float sum[1][kThreadRows<kN>];
    multiply_by_slices<Load, kN>(sum, shared, blocks, x,
                                 [&](unsigned char* room) { tail(room, Rows{r, end}); });
    let_next_start();
    if (column >= a.out) return;
    const float scale = scale_of(a.plan, w, output);
    LORRY_UNROLL
    for (int j = 0; j < kThreadRows<kN>; ++j) sum[0][j] *= scale;
    finish(sum[0], column, Rows{r + static_cast<int32_t>(threadIdx.x) / kRowBlock, end});
  });
}

// The same for gate and up, which lie interleaved by 64: a block has row block x of both. column:
// of gate alone.
template <class Load, int kN, class Wait, class Finish, class Tail = NoTail>
LORRY_DEVICE void decode_glu_block(const LinearArgs& a, Wait&& wait, Finish&& finish,
                                   Tail&& tail = {}) {
  wait();
  const int group = own_group(a);
  if (group < 0) return;
  float* shared = reinterpret_cast<float*>(shared_bytes());
  const int64_t bytes = a.plan.block_bytes();
  const auto block = static_cast<int>(blockIdx.x);
  const unsigned char* gate = a.w + group * a.group_bytes + gate_block(block) * bytes;
  const unsigned char* up = gate + kGluBlocks * bytes;
  const RowBlocks<2> blocks{gate, up - gate, static_cast<int>(a.plan.chunks())};
  const int output = static_cast<int>(threadIdx.x) % kRowBlock;
  const int64_t column = int64_t{block} * kRowBlock + output;
  each_tile<kN>(a, group, [&](const XRows<kN>& x, int32_t r, int32_t end) {
    float sum[2][kThreadRows<kN>];
    multiply_by_slices<Load, kN>(sum, shared, blocks, x,
                                 [&](unsigned char* room) { tail(room, Rows{r, end}); });
    let_next_start();
    if (column >= a.glu.cols) return;
    const float gate_scale = scale_of(a.plan, gate, output);
    const float up_scale = scale_of(a.plan, up, output);
    LORRY_UNROLL
    for (int j = 0; j < kThreadRows<kN>; ++j) {
      sum[0][j] *= gate_scale;
      sum[1][j] *= up_scale;
    }
    finish(sum, column, Rows{r + static_cast<int32_t>(threadIdx.x) / kRowBlock, end});
  });
}

template <class T, int kN>
LORRY_DEVICE void store_glu(const GluOut& glu, const float (&v)[2][kThreadRows<kN>], int64_t column,
                            Rows rows) {
  auto* y = static_cast<uint16_t*>(glu.y) + column;
  LORRY_UNROLL
  for (int j = 0; j < kThreadRows<kN>; ++j) {
    const int32_t row = rows.begin + kStoredRows * j;
    if (row < rows.end) y[row * glu.pitch] = T::to(gated(glu.activation, v[0][j], v[1][j]));
  }
}

// A handful of outputs, which would leave most of the device idle: kThinWarps warps share the
// inputs of 16 outputs and 8 rows. grid: row tiles, row blocks, groups. finish(value, column, row).
constexpr int kThinWarps = kParts;
constexpr int kThinRows = 8;
template <class Load, class Wait, class Finish>
LORRY_DEVICE void thin_block(const LinearArgs& a, Wait&& wait, Finish&& finish) {
  let_next_start();
  constexpr int kLine = 128;
  const auto group = static_cast<int>(blockIdx.z);
  const unsigned char* w = a.w + group * a.group_bytes + blockIdx.y * a.plan.block_bytes();
  for (int64_t at = int64_t{threadIdx.x} * kLine; at < a.plan.scales_offset();
       at += int64_t{32} * kThinWarps * kLine) {
    prefetch(w + at);
  }
  if (a.begin != nullptr) wait();
  const Rows rows = rows_of(a, group);
  auto* sums = reinterpret_cast<Word4*>(shared_bytes());
  const auto step = static_cast<int32_t>(kThinRows * gridDim.x);
  for (int32_t first = rows.begin + static_cast<int32_t>(kThinRows * blockIdx.x); first < rows.end;
       first += step) {
    const XRows<1> x(a.x, a.x_pitch, first, rows.end, a.plan.in);
    constexpr int kAhead = Load::kBytes >= 1024 ? 8 : 6;  // as many as registers hold
    sum_parts<typename Load::Act, kThinWarps, kAhead>(
        warp_index(), [&](int chunk) { return Load::load(w + int64_t{chunk} * Load::kBytes); }, x,
        static_cast<int>(a.plan.chunks()), wait,
        [&](int p, const Float4& sum) { sums[p * 32 + lane_index()] = words_of(sum); });
    sync_threads();
    const float total = add_parts(sums);
    const auto at = static_cast<int32_t>(threadIdx.x);
    const int32_t row = first + at / kRowBlock;
    const int64_t column = int64_t{blockIdx.y} * kRowBlock + at % kRowBlock;
    if (at < kThinRows * kRowBlock && row < rows.end && column < a.out) {
      finish(total * scale_of(a.plan, w, at % kRowBlock), column, row);
    }
    sync_threads();  // the sums have been read
  }
}

// Its grid.
inline Grid thin_grid(const LinearArgs& a) {
  return {ceil_div(expected_rows(a), kThinRows), ceil_div(a.out, kRowBlock), a.groups};
}

}  // namespace lorry::cuda
