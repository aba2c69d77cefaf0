// The rows of a linear's groups.
#pragma once
#include "ops/cuda/device.h"
#include "ops/cuda/kernels.h"

namespace lorry::cuda {

struct Rows {
  int32_t begin, end;
};
LORRY_DEVICE Rows rows_of(const LinearArgs& a, int group) {
  if (a.begin == nullptr) return {0, a.rows};
  return {a.begin[group], a.begin[group + 1]};
}

// The nth group, from 0, that has rows; -1: there are not so many. All lanes call it.
LORRY_DEVICE int group_with_rows(const LinearArgs& a, int nth) {
  for (int first = 0; first < a.groups; first += 32) {
    const int g = first + lane_index();
    const uint32_t some = ballot(g < a.groups && a.begin[g] < a.begin[g + 1]);
    if (nth < count_bits(some)) {
      const uint32_t own = uint32_t{1} << lane_index();
      return first + lowest_bit(ballot((some & own) != 0 && count_bits(some & (own - 1)) == nth));
    }
    nth -= count_bits(some);
  }
  return -1;
}

}  // namespace lorry::cuda
