// Merging the softmax of some keys with that of others. There is one way, so that whoever merges
// gets the same bits.
#pragma once
#include "ops/cuda/device.h"

namespace lorry::cuda {

// Of a row over some keys: the largest score (-infinity: it sees none of them) and the sum of
// e^(score - largest).
struct RowState {
  float most, sum;
};

// How values of both parts are put together.
struct Merge {
  float before = 1, after = 0;
  bool keep = true;  // there is nothing in the second part

  LORRY_DEVICE float operator()(float x, float y) const {
    return keep ? x : fmaf(y, after, x * before);
  }
};

// `all` becomes that of both.
LORRY_DEVICE Merge merge_states(RowState& all, const RowState& part) {
  Merge m;
  if (part.most == -INFINITY) return m;
  const float most = part.most > all.most || part.most != part.most ? part.most : all.most;
  m.keep = false;
  m.before = expf(all.most - most);
  m.after = expf(part.most - most);
  all.sum = m(all.sum, part.sum);
  all.most = most;
  return m;
}

}  // namespace lorry::cuda
