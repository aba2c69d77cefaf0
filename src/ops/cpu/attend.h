// One split (up to 256 keys) of attention for the query rows of one KV head. A row's result depends
// on its own keys alone: what it may not see is masked by selection, not by arithmetic, and a
// product with probability 0 leaves a sum as it was.
#pragma once
#include "ops/cpu/kernels.h"

namespace lorry::cpu {
namespace {

constexpr int kSplitKeys = 16 * kSplitBlocks;

// Bits of the lanes of `block` that a row sees.
LORRY_INLINE uint32_t visible(int lo, int hi, int block) {
  const int from = lo - 16 * block;
  const int to = hi - 16 * block;
  if (from > 15 || to < 0 || from > to) return 0;
  const uint32_t below = from > 0 ? (1U << from) - 1U : 0U;
  return (to >= 15 ? 0xffffU : (2U << to) - 1U) & ~below;
}

// Scores of MR rows with NV blocks from `first`. Fetch: prefetches these blocks' V and the next
// blocks' K, which lie all over memory.
template <class A, int MR, int NV, bool Fetch>
LORRY_INLINE void score_tile(const AttendArgs& a, const typename A::Element* q, float* s,
                             int first) {
  using Element = typename A::Element;
  const Element* k[NV];
  // Past the last block the last one is read again, and the result never used.
  unroll<NV>([&](auto j) LORRY_UNROLLED {
    k[j] = static_cast<const Element*>(a.k[smaller(first + j, a.blocks - 1)]);
  });
  const Element* next_k[NV];
  const Element* v[NV];
  unroll<NV>([&](auto j) LORRY_UNROLLED {
    next_k[j] = static_cast<const Element*>(a.k[smaller(first + NV + j, a.blocks + a.k_ahead - 1)]);
    v[j] = static_cast<const Element*>(a.v[smaller(first + j, a.blocks - 1)]);
  });
  V16 c[MR * NV];
  unroll<MR * NV>([&](auto i) LORRY_UNROLLED { c[i] = zero(); });
  for (int64_t x = 0; x < a.d; x += A::kStep) {
    if constexpr (Fetch) {
      unroll<NV>([&](auto j) LORRY_UNROLLED {
        __builtin_prefetch(next_k[j] + 16 * x, 0, 2);
        __builtin_prefetch(v[j] + 16 * x, 0, 2);
      });
    }
    typename A::Step b[NV];
    unroll<NV>([&](auto j) LORRY_UNROLLED { b[j] = A::steps(k[j] + 16 * x); });
    unroll<MR>([&](auto i) LORRY_UNROLLED {
      const typename A::Step w = A::broadcast(q + i * a.d + x);
      unroll<NV>([&](auto j) LORRY_UNROLLED { c[i * NV + j] = A::dot(w, b[j], c[i * NV + j]); });
    });
  }
  const V16 scale = set1(a.scale);
  unroll<MR>([&](auto i) LORRY_UNROLLED {
    unroll<NV>([&](auto j) LORRY_UNROLLED {
      if (first + j < a.blocks)
        store(s + i * kSplitKeys + 16 * (first + j), mul(c[i * NV + j], scale));
    });
  });
}

// Scores to probabilities of one row, in the type of the products.
template <class A>
void softmax_split(const AttendArgs& a, int row, float* s, typename A::Element* p) {
  const V16 never = set1(-kInfinity);
  V16 top = never;
  uint32_t any = 0;
  for (int b = 0; b < a.blocks; ++b) {
    const uint32_t mask = visible(a.lo[row], a.hi[row], b);
    any |= mask;
    const V16 masked =
        mask == 0xffffU ? load(s + 16 * b) : select_bits(mask, load(s + 16 * b), never);
    store(s + 16 * b, masked);
    top = max(masked, top);
  }
  const float most = reduce_max(top);
  V16 sum = zero();
  for (int b = 0; b < a.blocks; ++b) {
    const V16 e = any == 0 ? zero() : exp(sub(load(s + 16 * b), set1(most)));
    sum = add(sum, e);
    A::narrow(p + 16 * b, e);
  }
  a.max[row] = most;
  a.sum[row] = reduce_add(sum);
}

// MR rows by NV vectors of the head's dimensions from x; n: lanes of the last (and only) vector.
template <class A, int MR, int NV>
LORRY_INLINE void value_tile(const AttendArgs& a, const typename A::Element* p, float* o, int64_t x,
                             int n) {
  using Element = typename A::Element;
  V16 c[MR * NV];
  unroll<MR * NV>([&](auto i) LORRY_UNROLLED { c[i] = zero(); });
  for (int b = 0; b < a.blocks; ++b) {
    const Element* v = static_cast<const Element*>(a.v[b]) + x * A::kStep;
    for (int t = 0; t < 16; t += A::kStep, v += a.d * A::kStep) {
      typename A::Step w[NV];
      unroll<NV>([&](auto j) LORRY_UNROLLED {
        w[j] = n == 16 ? A::steps(v + 16 * A::kStep * j) : A::steps_n(v, n);
      });
      unroll<MR>([&](auto i) LORRY_UNROLLED {
        const typename A::Step e = A::broadcast(p + i * kSplitKeys + 16 * b + t);
        unroll<NV>([&](auto j) LORRY_UNROLLED { c[i * NV + j] = A::dot(e, w[j], c[i * NV + j]); });
      });
    }
  }
  // + 0 turns -0 into +0: a masked product (+0 or -0) may have changed the sign of a zero sum.
  unroll<MR>([&](auto i) LORRY_UNROLLED {
    unroll<NV>([&](auto j) LORRY_UNROLLED {
      store_some(o + i * a.d + x + 16 * j, add(c[i * NV + j], zero()), n);
    });
  });
}

template <class A, int MR>
void attend_tile(const AttendArgs& a, int row) {
  using Element = typename A::Element;
  constexpr int kVectors = tile_vectors(MR);
  alignas(64) float s[MR * kSplitKeys];
  alignas(64) Element p[MR * kSplitKeys];
  const Element* q = static_cast<const Element*>(a.q) + static_cast<int64_t>(row) * a.d;
  for (int b = 0; b < a.blocks; b += kVectors) {
    // The first rows bring everything into the cache for the others.
    row == 0 ? score_tile<A, MR, kVectors, true>(a, q, s, b)
             : score_tile<A, MR, kVectors, false>(a, q, s, b);
  }
  for (int i = 0; i < MR; ++i) softmax_split<A>(a, row + i, s + i * kSplitKeys, p + i * kSplitKeys);
  float* o = a.o + static_cast<int64_t>(row) * a.d;
  int64_t x = 0;
  for (; x + 16 * kVectors <= a.d; x += 16 * kVectors) {
    value_tile<A, MR, kVectors>(a, p, o, x, 16);
  }
  for (; x < a.d; x += 16) {
    value_tile<A, MR, 1>(a, p, o, x, smaller(16, static_cast<int>(a.d - x)));
  }
}

template <class A, int MR>
LORRY_INLINE void attend_rows(const AttendArgs& a, int row, int rows) {
  if constexpr (MR > 1) {
    if (rows < MR) return attend_rows<A, MR - 1>(a, row, rows);
  }
  attend_tile<A, MR>(a, row);
}

template <class A>
void attend(const AttendArgs& a) {
  const int passes = (a.rows + kMaxRows - 1) / kMaxRows;
  int row = 0;
  for (int pass = 0; pass < passes; ++pass) {
    const int rows = a.rows / passes + (pass < a.rows % passes ? 1 : 0);
    attend_rows<A, kMaxRows>(a, row, rows);
    row += rows;
  }
}

void merge(float* state_max_sum, float* state_o, const float* max_sum, const float* o, int64_t d) {
  const float most = max_sum[0] > state_max_sum[0] ? max_sum[0] : state_max_sum[0];
  float factor[16];
  V16 change = set1(max_sum[0] - most);
  change = select_bits(1U, set1(state_max_sum[0] - most), change);
  store(factor, exp(change));
  const V16 before = set1(factor[0]);
  const V16 now = set1(factor[1]);
  for_vectors(d, [&](int64_t i, int n) LORRY_UNROLLED {
    const V16 sum = fma(load_some(state_o + i, n), before, mul(load_some(o + i, n), now));
    store_some(state_o + i, sum, n);
  });
  state_max_sum[0] = most;
  state_max_sum[1] = __builtin_fmaf(state_max_sum[1], factor[0], max_sum[1] * factor[1]);
}

}  // namespace
}  // namespace lorry::cpu
