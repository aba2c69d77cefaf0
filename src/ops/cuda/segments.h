// Which rows of a tile use which adapter: kernels of LoRA have a block for each tile of rows and
// each of its first segments, so that many adapters of few rows work side by side.
#pragma once
#include "ops/cuda/device.h"
#include "ops/cuda/kernels.h"

namespace lorry::cuda {

constexpr int kTileRows = 8;  // also the most segments of a tile

// Rows [begin, end) of the batch and what is done to them. Nothing: begin == end.
struct TileRows {
  int32_t begin, end;
  const Patch* patch;  // [sites]
};

// The first segment that ends behind row `first`. The lanes of a warp ask together: 32 places at a
// time, so that few loads have to wait for each other.
LORRY_DEVICE int32_t first_segment(const AdaptArgs& a, int32_t first) {
  int32_t low = 0;
  int32_t high = a.n_segments;  // low <= what is looked for <= high
  while (low < high) {
    const int32_t step = (high - low + 31) / 32;
    const int32_t at = low + lane_index() * step;
    const bool before = at < high && a.segments[at].end <= first;
    const int32_t passed = warp_sum(before ? 1 : 0);  // the first lanes
    if (passed == 0) return low;
    const int32_t next = low + passed * step;
    low = next - step + 1;
    high = next < high ? next : high;
  }
  return low;
}

LORRY_DEVICE const Patch* patches_of(const AdaptArgs& a, const Segment& s) {
  return a.patches + (int64_t{s.adapter} * a.groups + s.group) * a.sites;
}

// Segment number `slot` of those that have rows in tile `tile`. All lanes of a warp ask for the
// same.
LORRY_DEVICE TileRows rows_of_tile(const AdaptArgs& a, int32_t tile, int32_t slot) {
  const int32_t first = tile * kTileRows;
  const int32_t at = first_segment(a, first) + slot;
  if (at >= a.n_segments) return {0, 0, nullptr};
  const Segment s = a.segments[at];
  const int32_t begin = s.begin > first ? s.begin : first;
  int32_t end = s.end < first + kTileRows ? s.end : first + kTileRows;
  end = end < a.rows ? end : a.rows;
  if (begin >= end) return {0, 0, nullptr};
  return {begin, end, patches_of(a, s)};
}

// Whether row lane_index() of a tile has a segment. A warp asks; they are read together.
LORRY_DEVICE bool has_segment(const AdaptArgs& a, int32_t tile) {
  const int32_t first_row = tile * kTileRows;
  const int32_t at = first_segment(a, first_row) + lane_index();
  const bool is_one = lane_index() < kTileRows && at < a.n_segments;
  const Segment s = is_one ? a.segments[at] : Segment{};
  bool has = false;
  LORRY_UNROLL
  for (int i = 0; i < kTileRows; ++i) {
    const int32_t row = first_row + i;
    const uint32_t of = ballot(s.begin <= row && row < s.end);
    if (lane_index() == i) has = of != 0;
  }
  return has;
}

// Where the sums of a row begin.
LORRY_DEVICE float* sums_of(const AdaptArgs& a, int site, int64_t row) {
  return a.t + (int64_t{site} * a.rows + row) * a.t_pitch;
}

LORRY_DEVICE int64_t column_of(const PatchSite& site, int64_t o) {
  return site.column + o / 64 * site.panel_stride + o % 64;
}

}  // namespace lorry::cuda
