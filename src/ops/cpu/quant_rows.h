// Rows of x to s8, one scale a row.
#pragma once
#include "ops/cpu/kernels.h"

namespace lorry::cpu {
namespace {

// f(k, values, n) for the vectors of a row, its inputs taken in the order of the weight.
template <class A, class F>
LORRY_INLINE void for_ordered(const QuantiseArgs& q, int64_t begin, int64_t end, F&& f) {
  const uint16_t* x = static_cast<const uint16_t*>(q.x);
  for (int64_t k = begin; k < end; k += 16) {
    const int n = end - k < 16 ? static_cast<int>(end - k) : 16;
    if (q.order == nullptr) {
      f(k, widen_some<A>(x + k, n));
    } else {
      uint16_t ordered[16] = {};
      for (int i = 0; i < n; ++i) ordered[i] = x[q.order[k + i]];
      f(k, A::widen(ordered));
    }
  }
}

template <class A>
void quantise_row(const QuantiseArgs& q) {
  const uint16_t* x = static_cast<const uint16_t*>(q.x);
  const RowScale row = row_scale<A>(x, q.in);
  *q.scale = row.scale;
  const bool finite = row.scale == row.scale;
  const V16 factor = set1(row.factor);
  const V16 shift = set1(12582912.0F);  // 1.5 * 2^23: adding it rounds to an integer
  int64_t g = 0;
  for (int64_t k = 0; k < q.in; k += q.group, ++g) {
    const int64_t end = k + q.group < q.in ? k + q.group : q.in;
    V16 sum = zero();  // exact: whole numbers below 2^24
    for_ordered<A>(q, k, end, [&](int64_t at, const V16& a) LORRY_UNROLLED {
      const V16 rounded = add(finite ? mul(a, factor) : zero(), shift);
      sum = add(sum, sub(rounded, shift));
      store_low_bytes(q.y + at, rounded);
    });
    q.sum[g] = static_cast<int32_t>(reduce_add(sum));
  }
  for (int64_t k = (q.in + 15) / 16 * 16; k < q.y_size; ++k) q.y[k] = 0;
}

}  // namespace
}  // namespace lorry::cpu
