// adapt, what a patch does beside its pair: other weights, gains, single outputs.
#include "ops/cuda/kernels.h"
#include "ops/cuda/launch.h"
#include "ops/cuda/rows_times.h"
#include "ops/cuda/segments.h"
#include "ops/cuda/value_at.h"

namespace lorry::cuda {

namespace {

// The matrix that takes the place of a site's outputs, or of its single ones.
struct Replacement {
  const unsigned char* w = nullptr;
  int64_t out = 0;
};
template <bool kSingle>
LORRY_DEVICE Replacement replacement_of(const Patch& patch, const PatchSite& site) {
  if (kSingle) return {patch.token_rows, patch.n_tokens};
  return {patch.weight, patch.weight == nullptr ? 0 : site.out};
}
template <bool kSingle>
LORRY_DEVICE int64_t target_of(const Patch& patch, const PatchSite& site, int64_t o) {
  return column_of(site, kSingle ? patch.tokens[o] : o);
}

// grid: tiles of rows, sites x row blocks, segments of a tile.
template <class T, bool kSingle>
LORRY_KERNEL(32 * kSlices)
replace_kernel(AdaptArgs a) {
  begin_kernel();
  float* shared = reinterpret_cast<float*>(shared_bytes());
  const auto s = static_cast<int>(blockIdx.y) % a.sites;
  const int64_t block = int64_t{blockIdx.y} / a.sites;
  const TileRows rows =
      rows_of_tile(a, static_cast<int32_t>(blockIdx.x), static_cast<int32_t>(blockIdx.z));
  if (rows.begin == rows.end) return;
  const PatchSite& site = a.site[s];
  const Replacement to = replacement_of<kSingle>(rows.patch[s], site);
  if (block * kRowBlock >= to.out) return;
  const int chunks = (site.in + kChunk - 1) / kChunk;
  const XRows<1> x(a.x, a.x_pitch, rows.begin, rows.end, site.in);
  float sum[1][8 / kStoredRows];
  const RowBlocks<1> blocks{to.w + block * chunks * LoadPlain<T>::kBytes, 0, chunks};
  multiply_by_slices<LoadPlain<T>, 1>(sum, shared, blocks, x);
  const int64_t o = block * kRowBlock + threadIdx.x % kRowBlock;
  if (o >= to.out) return;
  const int64_t first = rows.begin + static_cast<int32_t>(threadIdx.x) / kRowBlock;
  const int64_t column = target_of<kSingle>(rows.patch[s], site, o);
  LORRY_UNROLL
  for (int j = 0; j < 8 / kStoredRows; ++j) {
    const int64_t row = first + kStoredRows * j;
    if (row < rows.end) a.y[row * a.y_pitch + column] = sum[0][j];
  }
}

// The same in f32: a thread an output and row.
constexpr int kPlainThreads = kTileRows * kRowBlock;
template <bool kSingle>
LORRY_KERNEL(kPlainThreads)
replace_f32_kernel(AdaptArgs a) {
  begin_kernel();
  const auto s = static_cast<int>(blockIdx.y) % a.sites;
  const int64_t block = int64_t{blockIdx.y} / a.sites;
  const TileRows rows =
      rows_of_tile(a, static_cast<int32_t>(blockIdx.x), static_cast<int32_t>(blockIdx.z));
  if (rows.begin == rows.end) return;
  const PatchSite& site = a.site[s];
  const Replacement to = replacement_of<kSingle>(rows.patch[s], site);
  const int64_t o = block * kRowBlock + threadIdx.x % kRowBlock;
  const int64_t row = rows.begin + static_cast<int32_t>(threadIdx.x) / kRowBlock;
  if (o >= to.out || row >= rows.end) return;
  WeightPlan plan;
  plan.values = Values::f32;
  plan.in = site.in;
  const unsigned char* w = to.w + block * plan.block_bytes();
  const float* x = static_cast<const float*>(a.x) + row * a.x_pitch;
  float sum = 0;
  for (int k = 0; k < site.in; ++k) {
    sum = fmaf(x[k], value_at(plan, w, static_cast<int>(o % kRowBlock), k), sum);
  }
  a.y[row * a.y_pitch + target_of<kSingle>(rows.patch[s], site, o)] = sum;
}

constexpr int kScaleThreads = 256;

LORRY_KERNEL(kScaleThreads) scale_kernel(AdaptArgs a) {
  begin_kernel();
  const auto s = static_cast<int>(blockIdx.y) % a.sites;
  const int64_t o = int64_t{blockIdx.y} / a.sites * kScaleThreads + threadIdx.x;
  const TileRows rows =
      rows_of_tile(a, static_cast<int32_t>(blockIdx.x), static_cast<int32_t>(blockIdx.z));
  if (rows.begin == rows.end || rows.patch[s].gain == nullptr || o >= a.site[s].out) return;
  float* y = a.y + column_of(a.site[s], o);
  for (int64_t r = rows.begin; r < rows.end; ++r) y[r * a.y_pitch] *= rows.patch[s].gain[o];
}

Grid grid_of(const AdaptArgs& a, int64_t parts) {
  return {ceil_div(a.rows, kTileRows), a.sites * parts,
          a.n_segments < kTileRows ? a.n_segments : kTileRows};
}

}  // namespace

void replace_outputs(Stream s, const AdaptArgs& a, bool tokens, Act act) {
  const Grid grid = grid_of(a, ceil_div(tokens ? a.max_tokens : a.max_out, kRowBlock));
  if (act == Act::f32) {
    return tokens
               ? start<AdaptArgs, replace_f32_kernel<true>>("replace", grid, kPlainThreads, 0, s, a)
               : start<AdaptArgs, replace_f32_kernel<false>>("replace", grid, kPlainThreads, 0, s,
                                                             a);
  }
  with_16_bits(act, [&](auto x) {
    using T = decltype(x);
    constexpr int kThreads = 32 * kSlices;
    constexpr size_t kShared = slices_shared<LoadPlain<T>, 1, 1>();
    tokens ? start<AdaptArgs, replace_kernel<T, true>>("replace", grid, kThreads, kShared, s, a)
           : start<AdaptArgs, replace_kernel<T, false>>("replace", grid, kThreads, kShared, s, a);
  });
}

void scale_outputs(Stream s, const AdaptArgs& a) {
  const Grid grid = grid_of(a, ceil_div(a.max_out, kScaleThreads));
  start<AdaptArgs, scale_kernel>("scale", grid, kScaleThreads, 0, s, a);
}

}  // namespace lorry::cuda
