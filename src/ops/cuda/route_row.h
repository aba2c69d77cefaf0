// Which experts a row takes: for kernels that route rows and do more with them.
#pragma once
#include "ops/cuda/kernels.h"
#include "ops/cuda/launch.h"

namespace lorry::cuda {

struct Choice {
  float p;
  int expert;  // -1: none
};

// Where a row's choices go.
struct Chosen {
  int32_t* expert;
  float* weight;
};

// The larger p, then the lower expert. NaN loses to nothing and beats nothing: the lower expert.
LORRY_DEVICE Choice better(Choice a, Choice b) {
  if (a.expert < 0) return b;
  if (b.expert < 0) return a;
  if (a.p > b.p) return a;
  if (b.p > a.p) return b;
  return a.expert < b.expert ? a : b;
}

// Lanes of a warp that have a row: the others have rows of their own.
constexpr int lanes_of_row(int32_t experts) {
  int lanes = 1;
  while (lanes < experts && lanes < 32) lanes *= 2;
  return lanes;
}
// Rows that the warps of a block route at once.
constexpr int64_t rows_at_once(int32_t experts, int warps) {
  return int64_t{32} / lanes_of_row(experts) * warps;
}

// Of all lanes of a row, in all of them. With fewer lanes than 32 the bits are those of 32: of
// which the others would add nothing.
LORRY_DEVICE float row_sum(float x, int lanes) {
  for (int mask = lanes / 2; mask > 0; mask >>= 1) x += shuffle_xor(x, mask);
  return x;
}
LORRY_DEVICE float row_max(float x, int lanes) {
  for (int mask = lanes / 2; mask > 0; mask >>= 1) {
    const float other = shuffle_xor(x, mask);
    x = other > x || other != other ? other : x;
  }
  return x;
}
LORRY_DEVICE Choice best_of_row(Choice c, int lanes) {
  for (int mask = lanes / 2; mask > 0; mask >>= 1) {
    const Choice other{shuffle_xor(c.p, mask), shuffle_xor(c.expert, mask)};
    c = better(c, other);
  }
  return c;
}

// Routes a row by `lanes` lanes; all of a warp call it. p [experts], in shared memory: -1 where one
// was taken. Without a place to put them in, expert and weight are not stored.
LORRY_DEVICE void route_row(const RouteArgs& a, int64_t row, float* p, int lanes, int32_t* expert,
                            float* weight) {
  const float* scores = a.scores + row * a.scores_pitch;
  const int lane = lane_index() % lanes;
  float most = -INFINITY;
  for (int e = lane; e < a.experts; e += lanes) {
    most = scores[e] > most || scores[e] != scores[e] ? scores[e] : most;
  }
  most = row_max(most, lanes);
  float sum = 0;
  for (int e = lane; e < a.experts; e += lanes) {
    p[e] = expf(scores[e] - most);
    sum += p[e];
  }
  sum = row_sum(sum, lanes);
  for (int e = lane; e < a.experts; e += lanes) p[e] = p[e] / sum;
  float total = 0;
  for (int32_t j = 0; j < a.k; ++j) {
    Choice c{0, -1};
    for (int e = lane; e < a.experts; e += lanes) {
      if (p[e] != -1.0F) c = better(c, {p[e], e});
    }
    c = best_of_row(c, lanes);
    if (c.expert % lanes == lane) p[c.expert] = -1.0F;  // its own lane's
    total += a.norm_p == 1.0F ? c.p : powf(c.p, a.norm_p);
    if (lane != 0 || expert == nullptr) continue;
    expert[j] = c.expert;
    weight[j] = c.p;
  }
  if (a.norm_p == 0.0F || lane != 0 || expert == nullptr) return;
  const float length = a.norm_p == 1.0F ? total : powf(total, 1.0F / a.norm_p);
  for (int32_t j = 0; j < a.k; ++j) weight[j] /= length;
}

// Rows first, first + step ... by the warps of a block: f(row) says where row's choices go. p: of
// each row in work, experts.
template <class F>
LORRY_DEVICE void route_rows(const RouteArgs& a, int64_t first, int64_t end, float* p, F&& f) {
  const int lanes = lanes_of_row(a.experts);
  const int together = 32 / lanes;
  const int own = warp_index() * together + lane_index() / lanes;
  const int step = static_cast<int>(blockDim.x) / 32 * together;
  for (int64_t begin = first; begin < end; begin += step) {
    const int64_t row = begin + own;
    const Chosen to = row < end ? f(row) : Chosen{nullptr, nullptr};
    route_row(a, row < end ? row : end - 1, p + own * a.experts, lanes, to.expert, to.weight);
  }
}

}  // namespace lorry::cuda
