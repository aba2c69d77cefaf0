// What quantising weights takes of vector arithmetic: their range, rounding, the error of a scale.
#pragma once
#include "ops/cpu/kernels.h"

namespace lorry::cpu {
namespace {

// The smallest and the largest of w, and 0 or NaN if one is not finite.
void weight_range(const float* w, int64_t size, float* range) {
  V16 low = zero();
  V16 high = zero();
  V16 nan = zero();
  for_vectors(size, [&](int64_t i, int n) LORRY_UNROLLED {
    const V16 a = load_some(w + i, n);
    high = max(high, a);
    low = max(low, sub(zero(), a));
    nan = fma(a, zero(), nan);
  });
  range[0] = -reduce_max(low);
  range[1] = reduce_max(high);
  range[2] = reduce_add(nan);
}

constexpr float kRoundShift = 12582912.0F;  // 1.5 * 2^23: adding it rounds to an integer

// q = zero + rint(w / scale), limited to [-bound, bound - 1]. Writes whole vectors.
void round_weights(uint8_t* q, const float* w, int64_t size, float scale, int bound) {
  const V16 low = set1(static_cast<float>(-bound));
  const V16 high = set1(static_cast<float>(bound - 1));
  const V16 shift = set1(kRoundShift + static_cast<float>(bound));
  for_vectors(size, [&](int64_t i, int n) LORRY_UNROLLED {
    const V16 a = div(load_some(w + i, n), set1(scale));
    store_low_bytes(q + i, add(min(high, max(low, a)), shift));
  });
}

// errors[i] = the sum of (w - scales[i] * q)^2 for such q, bound 8.
void rounding_errors(const float* w, int64_t size, const float* scales, int count, float* errors) {
  const V16 low = set1(-8.0F);
  const V16 high = set1(7.0F);
  const V16 shift = set1(kRoundShift);
  for (int j = 0; j < count; ++j) {
    const V16 inverse = set1(1.0F / scales[j]);
    const V16 minus = set1(-scales[j]);
    errors[j] = sum_of(size, [&](int64_t i, int n, const V16& c) LORRY_UNROLLED {
      const V16 a = load_some(w + i, n);
      const V16 q = sub(add(min(high, max(low, mul(a, inverse))), shift), shift);
      const V16 lost = fma(q, minus, a);
      return fma(lost, lost, c);
    });
  }
}

}  // namespace
}  // namespace lorry::cpu
