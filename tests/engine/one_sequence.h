// One sequence through a loaded model, without an engine, and how far its logits are from others.
#pragma once
#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include <gtest/gtest.h>

#include "engine/loaded_model.h"

namespace lorry::test {

// Logits [tokens, V] of one sequence in blocks 0, 1, ...; with an adapter, views[0]. Valid until
// the next pass.
inline Tensor logits_of(LoadedModel& model, const std::vector<int32_t>& ids,
                        const std::vector<AdapterView>& views) {
  const auto n = static_cast<int32_t>(ids.size());
  std::vector<int32_t> positions(ids.size());
  std::iota(positions.begin(), positions.end(), 0);
  std::vector<int32_t> table((ids.size() + 15) / 16);
  std::iota(table.begin(), table.end(), 0);
  const std::vector<int32_t> lens(ids.size(), n), cu{0, n}, kv{n}, which{views.empty() ? -1 : 0};
  const ForwardInput in{
      ids,       positions, lens,     cu, kv, table, static_cast<int32_t>(table.size()),
      positions, which,     positions};
  return model.lm->forward(in, model.layers, views).logits;
}

inline float largest_difference(const Tensor& got, const Tensor& want) {
  EXPECT_EQ(got.shape, want.shape);
  float worst = 0;
  for (int64_t t = 0; t < want.shape[0]; ++t) {
    for (int64_t v = 0; v < want.shape[1]; ++v) {
      worst = std::max(worst, std::abs(got.row<const float>(t)[v] - want.row<const float>(t)[v]));
    }
  }
  return worst;
}

}  // namespace lorry::test
