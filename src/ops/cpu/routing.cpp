// route and group: which experts a row takes, and the rows of each expert side by side.
#include <array>
#include <cmath>

#include "ops/cpu/backend.h"

namespace lorry::cpu {

namespace {

constexpr int32_t kMaxExperts = 1024;

// The k largest of p [experts], ties to the lower index. Leaves -1 in p where one was taken, so
// that every choice is another expert even when p holds NaN.
void choose(int32_t* expert, float* weight, float* p, int32_t experts, int32_t k) {
  for (int32_t j = 0; j < k; ++j) {
    int32_t best = -1;
    for (int32_t e = 0; e < experts; ++e) {
      if (p[e] == -1.0F) continue;
      if (best < 0 || p[e] > p[best]) best = e;
    }
    expert[j] = best;
    weight[j] = p[best];
    p[best] = -1.0F;
  }
}

void normalise(float* weight, int32_t k, float norm_p) {
  if (norm_p == 0.0F) return;
  float sum = 0;
  for (int32_t j = 0; j < k; ++j) {
    sum += norm_p == 1.0F ? weight[j] : std::pow(weight[j], norm_p);
  }
  const float length = norm_p == 1.0F ? sum : std::pow(sum, 1.0F / norm_p);
  for (int32_t j = 0; j < k; ++j) weight[j] /= length;
}

}  // namespace

void CpuOps::route(Route& route, Tensor scores, const Routing& routing) {
  const auto experts = static_cast<int32_t>(scores.cols());
  LORRY_CHECK(experts <= kMaxExperts && routing.top_k <= experts, "{} of {} experts", routing.top_k,
              experts);
  parallel_rows(scores.rows(), 16 * experts, [&](int64_t r) {
    std::array<float, kMaxExperts> p;
    kernels_.softmax(p.data(), scores.row<const float>(r), experts);
    float* weight = route.weight.row<float>(r);
    choose(route.expert.row<int32_t>(r), weight, p.data(), experts, routing.top_k);
    normalise(weight, routing.top_k, routing.norm_p);
  });
}

// Two counting sorts: rows by adapter (no adapter last), then their choices by expert.
void CpuOps::group(Route& route, const LoraPlan& plan) {
  const auto rows = static_cast<int32_t>(route.expert.rows());
  const auto k = static_cast<int32_t>(route.expert.cols());
  const size_t adapters = plan.adapters.size();
  const auto key = [&](int32_t row) {
    const int32_t a = plan.row_adapter.empty() ? -1 : plan.row_adapter[static_cast<size_t>(row)];
    return a < 0 ? adapters : static_cast<size_t>(a);
  };
  counts_.assign(adapters + 2, 0);
  order_.resize(static_cast<size_t>(rows));
  for (int32_t r = 0; r < rows; ++r) ++counts_[key(r) + 1];
  for (size_t a = 1; a < counts_.size(); ++a) counts_[a] += counts_[a - 1];
  for (int32_t r = 0; r < rows; ++r) order_[static_cast<size_t>(counts_[key(r)]++)] = r;

  const int32_t groups = route.groups_count();
  // Of a choice; not in [0, groups): another rank's.
  const auto group_of = [&](int32_t row, int32_t j) {
    return route.expert.row<const int32_t>(row)[j] - route.first_own;
  };
  const auto is_own = [&](int32_t g) { return g >= 0 && g < groups; };
  int32_t* begin = route.begin.row<int32_t>(0);
  std::fill(begin, begin + groups + 1, 0);
  for (int32_t r = 0; r < rows; ++r) {
    for (int32_t j = 0; j < k; ++j) {
      if (is_own(group_of(r, j))) ++begin[group_of(r, j) + 1];
    }
  }
  for (int32_t g = 0; g < groups; ++g) begin[g + 1] += begin[g];

  counts_.assign(begin, begin + groups);
  auto* segments = reinterpret_cast<LoraSegment*>(route.segment.data);
  int32_t* source = route.source.row<int32_t>(0);
  route.n_segments = 0;
  for (const int32_t r : order_) {
    for (int32_t j = 0; j < k; ++j) {
      const int32_t g = group_of(r, j);
      const int32_t at = is_own(g) ? counts_[static_cast<size_t>(g)]++ : -1;
      route.slot.row<int32_t>(r)[j] = at;
      if (at >= 0) source[at] = r;
    }
  }
  for (int32_t e = 0; e < groups; ++e) {
    for (int32_t at = begin[e]; at < begin[e + 1]; ++at) {
      const size_t a = key(source[at]);
      if (a == adapters) break;
      if (at == begin[e] || key(source[at - 1]) != a) {
        segments[route.n_segments++] = {at, at, static_cast<int32_t>(a), e};
      }
      segments[route.n_segments - 1].end = at + 1;
    }
  }
}

}  // namespace lorry::cpu
