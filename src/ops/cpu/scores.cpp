#include "ops/scores.h"

#include <cmath>

#include "ops/cpu/isa.h"

namespace lorry {

namespace {

const cpu::Kernels& best_kernels() {
  static const cpu::Kernels& kBest = cpu::kernels_of(best_isa());
  return kBest;
}

}  // namespace

int32_t arg_max(std::span<const float> x) {
  return static_cast<int32_t>(best_kernels().arg_max(x.data(), static_cast<int64_t>(x.size())));
}

double log_sum_exp(std::span<const float> x) {
  const int32_t at = arg_max(x);
  if (at < 0) {
    double top = -INFINITY;
    for (const float v : x) {
      // Once NaN, it stays: nothing is greater.
      if (v != v || double{v} > top) top = double{v};
    }
    return top;
  }
  const float top = x[static_cast<size_t>(at)];
  const double sum = best_kernels().sum_exp(x.data(), top, static_cast<int64_t>(x.size()));
  return double{top} + std::log(sum);
}

}  // namespace lorry
