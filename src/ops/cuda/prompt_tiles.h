// Which tiles a prompt's linear has, and how their sums go from shared memory to where they belong.
#pragma once
#include "ops/cuda/activation.h"
#include "ops/cuda/bulk.h"
#include "ops/cuda/kernels.h"
#include "ops/cuda/numbers.h"

namespace lorry::cuda {

constexpr int kBlockOutputs = 128;
constexpr int kWidest = 256;  // rows of a tile, at most

struct PromptArgs {
  LinearArgs linear;
  int32_t columns;  // of tiles: kCluster * kBlockOutputs outputs each
  int32_t widest;   // rows of a tile, at most; a multiple of 8
};

struct PromptTile {
  int32_t group;
  int32_t block;       // of kBlockOutputs outputs
  int32_t begin, end;  // rows
  int32_t row, rows;   // the same with those of other groups around them: both multiples of 8
  bool leads;          // asks for weights ahead
};

// The tiles of a cluster, every so many: those that have weights in common are neighbours, then
// those of a group. A group is cut into tiles that are as wide as each other.
class TileWalk {
 public:
  LORRY_DEVICE explicit TileWalk(const PromptArgs& a)
      : a_(a), at_(static_cast<int32_t>(blockIdx.x) / kCluster) {
    find_group();
  }

  // Which block of its cluster this is.
  LORRY_DEVICE static int rank() { return static_cast<int>(blockIdx.x) % kCluster; }

  LORRY_DEVICE bool more() const { return group_ < a_.linear.groups; }
  // Requires: there are more.
  LORRY_DEVICE PromptTile tile() const {
    const Cut c = cut(group_);
    PromptTile t;
    t.group = group_;
    t.block = at_ / c.tiles * kCluster + rank();
    t.row = c.begin / 8 * 8 + at_ % c.tiles * c.width;
    t.begin = t.row < c.begin ? c.begin : t.row;
    t.end = t.row + c.width < c.end ? t.row + c.width : c.end;
    t.rows = (t.end - t.row + 7) / 8 * 8;
    // Many tiles with the same weights are multiplied side by side, and what is asked for by each
    // counts; few are not always.
    constexpr int32_t kMany = 4;
    t.leads = c.tiles < kMany || at_ % c.tiles == 0;
    return t;
  }
  LORRY_DEVICE void advance() {
    at_ += static_cast<int32_t>(gridDim.x) / kCluster;
    find_group();
  }

 private:
  // How a group is cut, in each column.
  struct Cut {
    int32_t begin, end;  // rows
    int32_t tiles, width;
  };
  LORRY_DEVICE Cut cut(int32_t group) const {
    Cut c{0, a_.linear.rows, 0, 0};
    if (a_.linear.begin != nullptr) {
      c.begin = a_.linear.begin[group];
      c.end = a_.linear.begin[group + 1];
    }
    if (c.begin == c.end) return c;
    const int32_t rows = c.end - c.begin / 8 * 8;
    c.tiles = (rows + a_.widest - 1) / a_.widest;
    c.width = ((rows + c.tiles - 1) / c.tiles + 7) / 8 * 8;
    return c;
  }
  LORRY_DEVICE void find_group() {
    for (; group_ < a_.linear.groups; ++group_) {
      const int32_t tiles = cut(group_).tiles * a_.columns;
      if (at_ < tiles) return;
      at_ -= tiles;
    }
  }

  // No more than this: registers are scarce where tiles are multiplied.
  const PromptArgs& a_;
  int32_t at_;  // from the group's first tile
  int32_t group_ = 0;
};

// Where the sum of one of a warpgroup's 64 outputs for a row of the tile waits in shared memory.
// The lanes of a warp keep a value each in different banks, and eight of them read 32 outputs of a
// row.
LORRY_DEVICE int place_of_sum(int row, int output) {
  const int warp = output / 16;
  const int half = output % 16 / 8;
  const int q = row % 8 / 2 ^ (half + warp % 2 * 2);
  return (row / 8 * 4 + half * 2 + row % 2) * 128 + warp * 32 + q * 8 + output % 8;
}
constexpr int kSumsOfEightRows = 8 * 64;

// By a warpgroup, of whose outputs they are.
LORRY_DEVICE void store_sums(const LinearArgs& a, const float* sums, const PromptTile& t,
                             int warpgroup) {
  const auto thread = static_cast<int>(threadIdx.x) % 128;
  const int o = thread % 16 * 4;
  const int64_t column = int64_t{t.block} * kBlockOutputs + warpgroup * 64 + o;
  if (column >= a.out) return;
  const bool wide = reinterpret_cast<uintptr_t>(a.y + column) % 16 == 0 && a.y_pitch % 4 == 0 &&
                    column + 4 <= a.out;
  int32_t row = t.begin + thread / 16;
  const float* from = sums + place_of_sum(row - t.row, o);
  float* y = a.y + row * a.y_pitch + column;
  for (; row < t.end; row += 8, from += kSumsOfEightRows, y += 8 * a.y_pitch) {
    if (wide) {
      *reinterpret_cast<Word4*>(y) = *reinterpret_cast<const Word4*>(from);
    } else {
      for (int i = 0; i < 4 && column + i < a.out; ++i) y[i] = from[i];
    }
  }
}

// By both: the first has the gate's outputs, the other those of up that belong to them.
template <class T>
LORRY_DEVICE void store_gated(const LinearArgs& a, const float* gate, const float* up,
                              const PromptTile& t) {
  const int o = static_cast<int>(threadIdx.x) % 8 * 8;
  const int64_t column = int64_t{t.block} * (kBlockOutputs / 2) + o;
  if (column >= a.glu.cols) return;
  auto* to = static_cast<uint16_t*>(a.glu.y) + column;
  const bool wide =
      reinterpret_cast<uintptr_t>(to) % 16 == 0 && a.glu.pitch % 8 == 0 && column + 8 <= a.glu.cols;
  int32_t row = t.begin + static_cast<int32_t>(threadIdx.x) / 8;
  int at = place_of_sum(row - t.row, o);
  uint16_t* y = to + row * a.glu.pitch;
  for (; row < t.end; row += 32, at += 4 * kSumsOfEightRows, y += 32 * a.glu.pitch) {
    uint32_t pair[4];
    LORRY_UNROLL
    for (int i = 0; i < 4; ++i) {
      const Word2 g = *reinterpret_cast<const Word2*>(gate + at + 2 * i);
      const Word2 u = *reinterpret_cast<const Word2*>(up + at + 2 * i);
      pair[i] = T::pack(gated(a.glu.activation, as_float(g.x), as_float(u.x)),
                        gated(a.glu.activation, as_float(g.y), as_float(u.y)));
    }
    if (wide) {
      *reinterpret_cast<Word4*>(y) = {pair[0], pair[1], pair[2], pair[3]};
    } else {
      LORRY_UNROLL
      for (int i = 0; i < 8; ++i) {
        if (column + i < a.glu.cols) y[i] = static_cast<uint16_t>(pair[i / 2] >> (i % 2 * 16));
      }
    }
  }
}

}  // namespace lorry::cuda
