// Merging the softmax of some keys with that of others. There is one way, so that whoever merges
// gets the same bits.
#pragma once
#include "ops/cuda/device.h"

namespace lorry::cuda {

// What scores are multiplied by: e^(x / sqrt(d)) = 2^(x scale).
LORRY_DEVICE float score_scale(int head_dim) {
  constexpr float kLog2E = 1.442695041F;
  return kLog2E / sqrtf(static_cast<float>(head_dim));
}

// Of a row over some keys: the largest score times score_scale (-infinity: it sees none of them)
// and the sum of 2^(score - largest).
struct RowState {
  float most, sum;
};

// How values of both parts are put together.
struct Merge {
  float before = 1, after = 0;
  bool keep = true;  // there is nothing in the second part

  // Requires: not keep.
  LORRY_DEVICE float add(float x, float y) const { return fmaf(y, after, x * before); }
  LORRY_DEVICE float operator()(float x, float y) const { return keep ? x : add(x, y); }
};

// `all` becomes that of both.
LORRY_DEVICE Merge merge_states(RowState& all, const RowState& part) {
  Merge m;
  if (part.most == -INFINITY) return m;
  const float most = larger_or_nan(part.most, all.most);
  m.keep = false;
  m.before = power_of_2(all.most - most);
  m.after = power_of_2(part.most - most);
  all.sum = m(all.sum, part.sum);
  all.most = most;
  return m;
}

}  // namespace lorry::cuda
