// One split (up to 256 keys) of attention for the query rows of one KV head. A row's result depends
// on its own keys alone: what it may not see is masked by selection, not by arithmetic, and a
// product with probability 0 leaves a sum as it was.
#pragma once
#include "ops/cpu/kernels.h"

namespace lorry::cpu {
namespace {

constexpr int kSplitKeys = 16 * kSplitBlocks;

// How keys and values are stored (Stored) and multiplied. A step is kStep elements of 16 keys, or
// kStep tokens of 16 dimensions, multiplied in kParts; X: of q and of the probabilities.
struct KvF32 {
  using Stored = float;
  using X = float;
  using Operand = V16;
  static constexpr int kStep = 1, kParts = 1;
  static constexpr bool kScaled = false;

  template <int>
  static LORRY_INLINE V16 load_part(const float* p) {
    return load(p);
  }
  template <int>
  static LORRY_INLINE V16 spread(const float* x) {
    return set1(*x);
  }
  static LORRY_INLINE void add_product(V16& c, const V16& x, const V16& b) { accumulate(c, x, b); }
  static LORRY_INLINE void put(float* p, const V16& e) { store(p, e); }
};

struct KvBf16 {
  using Stored = uint16_t;
  using X = uint16_t;
  using Operand = P16;
  static constexpr int kStep = 2, kParts = 1;
  static constexpr bool kScaled = false;

  template <int>
  static LORRY_INLINE P16 load_part(const uint16_t* p) {
    return load_pairs(p);
  }
  template <int>
  static LORRY_INLINE P16 spread(const uint16_t* x) {
    return Bf16::broadcast(x);
  }
  static LORRY_INLINE void add_product(V16& c, const P16& x, const P16& b) { c = dot(x, b, c); }
  static LORRY_INLINE void put(uint16_t* p, const V16& e) { narrow(p, e); }
};

// The same bits in two FMA, the odd elements first; X is widened already.
struct KvBf16Wide : KvF32 {
  using Stored = uint16_t;
  static constexpr int kStep = 2, kParts = 2;

  template <int Part>
  static LORRY_INLINE V16 load_part(const uint16_t* p) {
    return Part == 0 ? load_odd(p) : load_even(p);
  }
  template <int Part>
  static LORRY_INLINE V16 spread(const float* x) {
    return set1(x[1 - Part]);
  }
  static LORRY_INLINE void put(float* p, const V16& e) { store(p, round_to_bf16(e)); }
};

// X is widened already.
struct KvF16 : KvF32 {
  using Stored = uint16_t;

  template <int>
  static LORRY_INLINE V16 load_part(const uint16_t* p) {
    return load_f16(p);
  }
  static LORRY_INLINE void put(float* p, const V16& e) { store(p, round_to_f16(e)); }
};

// Whole numbers; behind a block's values are the scales of its 16 tokens. Those of keys multiply
// the scores, those of values the probabilities.
struct KvInt8 : KvF32 {
  using Stored = int8_t;
  static constexpr bool kScaled = true;

  template <int>
  static LORRY_INLINE V16 load_part(const int8_t* p) {
    return load_signed(p);
  }
  static LORRY_INLINE V16 scales(const void* block, int64_t d) {
    return load(reinterpret_cast<const float*>(static_cast<const int8_t*>(block) + 16 * d));
  }
};

// Bits of the lanes of `block` that a row sees.
LORRY_INLINE uint32_t visible(int lo, int hi, int block) {
  const int from = lo - 16 * block;
  const int to = hi - 16 * block;
  if (from > 15 || to < 0 || from > to) return 0;
  const uint32_t below = from > 0 ? (1U << from) - 1U : 0U;
  return (to >= 15 ? 0xffffU : (2U << to) - 1U) & ~below;
}

// c += MR rows of x, `pitch` apart, times one step of the NV vectors at b[j].
template <class A, int MR, int NV>
LORRY_INLINE void attend_step(V16* c, const typename A::X* x, int64_t pitch,
                              const typename A::Stored* const* b) {
  unroll<A::kParts>([&](auto part) LORRY_UNROLLED {
    typename A::Operand w[NV];
    unroll<NV>([&](auto j) LORRY_UNROLLED { w[j] = A::template load_part<part>(b[j]); });
    unroll<MR>([&](auto i) LORRY_UNROLLED {
      const typename A::Operand a = A::template spread<part>(x + i * pitch);
      unroll<NV>([&](auto j) LORRY_UNROLLED { A::add_product(c[i * NV + j], a, w[j]); });
    });
  });
}

// Steps that read one cache line of each block.
template <class A>
constexpr int line_steps() {
  return 64 / (16 * A::kStep * static_cast<int>(sizeof(typename A::Stored)));
}

// A line on its way from memory and one from L2 take the same few buffers of L1, so lines come to
// L1 at once.
LORRY_INLINE void prefetch_line(const void* p) { __builtin_prefetch(p, 0, 3); }

// Scores of MR rows with NV blocks from `first`. Fetch: prefetches what is read after them.
template <class A, int MR, int NV, bool Fetch>
LORRY_INLINE void score_tile(const AttendArgs& a, const typename A::X* q, float* s, int first) {
  using Stored = typename A::Stored;
  constexpr int kSteps = line_steps<A>();
  const Stored* k[NV];
  const Stored* ahead[NV];
  // Past the last block the last one is read again, and the result never used.
  unroll<NV>([&](auto j) LORRY_UNROLLED {
    k[j] = static_cast<const Stored*>(a.k[smaller(first + j, a.blocks - 1)]);
    ahead[j] = static_cast<const Stored*>(a.ahead[smaller(first + j, a.blocks - 1)]);
  });
  V16 c[MR * NV];
  unroll<MR * NV>([&](auto i) LORRY_UNROLLED { c[i] = zero(); });
  const auto step = [&](int64_t x) LORRY_UNROLLED {
    const Stored* at[NV];
    unroll<NV>([&](auto j) LORRY_UNROLLED { at[j] = k[j] + 16 * x; });
    attend_step<A, MR, NV>(c, q + x, a.d, at);
  };
  int64_t x = 0;
  for (; x + kSteps * A::kStep <= a.d; x += kSteps * A::kStep) {
    if constexpr (Fetch) {
      unroll<NV>([&](auto j) LORRY_UNROLLED { prefetch_line(ahead[j] + 16 * x); });
    }
    unroll<kSteps>([&](auto i) LORRY_UNROLLED { step(x + i * A::kStep); });
  }
  for (; x < a.d; x += A::kStep) step(x);
  unroll<NV>([&](auto j) LORRY_UNROLLED {
    if (first + j >= a.blocks) return;
    V16 scale = set1(a.scale);
    if constexpr (A::kScaled) {
      scale = mul(A::scales(k[j], a.d), scale);
      if constexpr (Fetch) prefetch_line(ahead[j] + 16 * a.d);
    }
    unroll<MR>([&](auto i) LORRY_UNROLLED {
      store(s + i * kSplitKeys + 16 * (first + j), mul(c[i * NV + j], scale));
    });
  });
}

// Scores to probabilities of one row, as they multiply the values.
template <class A>
void softmax_split(const AttendArgs& a, int row, float* s, typename A::X* p) {
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
    V16 e = any == 0 ? zero() : exp(sub(load(s + 16 * b), set1(most)));
    sum = add(sum, e);
    if constexpr (A::kScaled) {
      // The scale of a token that the row does not see may be another request's NaN.
      const uint32_t mask = visible(a.lo[row], a.hi[row], b);
      e = select_bits(mask, mul(e, A::scales(a.v[b], a.d)), zero());
    }
    A::put(p + 16 * b, e);
  }
  a.max[row] = most;
  a.sum[row] = reduce_add(sum);
}

// MR rows by NV vectors of the head's dimensions from x; n: lanes of the last (and only) vector.
// Fetch: prefetches the same places of what is read later.
template <class A, int MR, int NV, bool Fetch>
LORRY_INLINE void value_tile(const AttendArgs& a, const typename A::X* p, float* o, int64_t x,
                             int n) {
  using Stored = typename A::Stored;
  constexpr int kVector = 16 * A::kStep;
  constexpr int kLines = NV * kVector * static_cast<int>(sizeof(Stored)) / 64;
  V16 c[MR * NV];
  unroll<MR * NV>([&](auto i) LORRY_UNROLLED { c[i] = zero(); });
  for (int b = 0; b < a.blocks; ++b) {
    const Stored* v = static_cast<const Stored*>(a.v[b]) + x * A::kStep;
    const char* next = nullptr;
    if constexpr (Fetch) {
      const auto* later = static_cast<const Stored*>(a.ahead[a.blocks + b]);
      if (A::kScaled && x == 0) prefetch_line(later + 16 * a.d);
      next = reinterpret_cast<const char*>(later + x * A::kStep);
    }
    for (int t = 0; t < 16; t += A::kStep, v += a.d * A::kStep) {
      if constexpr (Fetch) {
        unroll<kLines>([&](auto i) LORRY_UNROLLED { prefetch_line(next + 64 * i); });
        next += a.d * A::kStep * static_cast<int64_t>(sizeof(Stored));
      }
      const typename A::X* e = p + 16 * b + t;
      if (n == 16) {
        const Stored* at[NV];
        unroll<NV>([&](auto j) LORRY_UNROLLED { at[j] = v + kVector * j; });
        attend_step<A, MR, NV>(c, e, kSplitKeys, at);
      } else {
        Stored some[kVector] = {};
        __builtin_memcpy(some, v, static_cast<size_t>(n * A::kStep) * sizeof(Stored));
        const Stored* const at = some;
        attend_step<A, MR, 1>(c, e, kSplitKeys, &at);
      }
    }
  }
  // + 0 turns -0 into +0: a masked product (+0 or -0) may have changed the sign of a zero sum.
  unroll<MR>([&](auto i) LORRY_UNROLLED {
    unroll<NV>([&](auto j) LORRY_UNROLLED {
      store_some(o + i * a.d + x + 16 * j, add(c[i * NV + j], zero()), n);
    });
  });
}

// The dimensions from x on: less than a tile of value_tile.
template <class A, int MR>
void value_rest(const AttendArgs& a, const typename A::X* p, float* o, int64_t x) {
  for (; x < a.d; x += 16) {
    value_tile<A, MR, 1, false>(a, p, o, x, smaller(16, static_cast<int>(a.d - x)));
  }
}

template <class A, int MR, bool Fetch>
LORRY_INLINE void attend_tile(const AttendArgs& a, int row) {
  using X = typename A::X;
  constexpr int kVectors = tile_vectors(MR);
  alignas(64) float s[MR * kSplitKeys];
  alignas(64) X p[MR * kSplitKeys];
  const X* q = static_cast<const X*>(a.q) + static_cast<int64_t>(row) * a.d;
  for (int b = 0; b < a.blocks; b += kVectors) score_tile<A, MR, kVectors, Fetch>(a, q, s, b);
  for (int i = 0; i < MR; ++i) softmax_split<A>(a, row + i, s + i * kSplitKeys, p + i * kSplitKeys);
  float* o = a.o + static_cast<int64_t>(row) * a.d;
  int64_t x = 0;
  for (; x + 16 * kVectors <= a.d; x += 16 * kVectors) {
    value_tile<A, MR, kVectors, Fetch>(a, p, o, x, 16);
  }
  if (x < a.d) value_rest<A, MR>(a, p, o, x);
}

template <class A, int MR>
void attend_rows(const AttendArgs& a, int row, int rows) {
  if constexpr (MR > 1) {
    if (rows < MR) return attend_rows<A, MR - 1>(a, row, rows);
  }
  if constexpr (MR >= fewest_rows(2)) {
    if (row > 0) return attend_tile<A, MR, false>(a, row);
  }
  // The first rows bring everything into the cache for the others.
  attend_tile<A, MR, true>(a, row);
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

template <class A>
void load_q(void* y, const float* q, int64_t q_pitch, int64_t rows, int64_t size) {
  using X = typename A::X;
  auto* to = static_cast<X*>(y);
  for (int64_t r = 0; r < rows; ++r, q += q_pitch, to += size) {
    for_vectors(size, [&](int64_t i, int n) LORRY_UNROLLED {
      X some[16];
      A::put(some, load_some(q + i, n));
      __builtin_memcpy(to + i, some, static_cast<size_t>(n) * sizeof(X));
    });
  }
}

template <class A>
constexpr AttendKernels attend_kernels() {
  return {.split = attend<A>, .load_q = load_q<A>};
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
