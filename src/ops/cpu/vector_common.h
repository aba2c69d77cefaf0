// What the algorithms share, over V16 and P16: unrolling, fixed-order sums, the exponential, and
// the element types (Bf16, F16, F32) as policies. Included after one of the vector_*.h files.
#pragma once
#include <utility>  // integer_sequence: a type, no code

#include <stdint.h>

namespace lorry::cpu {
namespace {

// Calls f with the constants 0 ... N-1, unrolled: g++ keeps an array of registers out of memory
// only where every index is a constant when it optimises.
template <int I>
struct Constant {
  constexpr operator int() const { return I; }
};
template <class F, int... I>
LORRY_INLINE void unroll_sequence(F&& f, std::integer_sequence<int, I...>) {
  (f(Constant<I>{}), ...);
}
template <int N, class F>
LORRY_INLINE void unroll(F&& f) {
  unroll_sequence(f, std::make_integer_sequence<int, N>{});
}
#define LORRY_UNROLLED __attribute__((always_inline))

constexpr int smaller(int a, int b) { return a < b ? a : b; }
constexpr float kInfinity = __builtin_inff();

// The rows of the lowest pass where rows are split into `passes` or more passes of nearly equal
// height: a kernel for fewer rows need not exist.
constexpr int fewest_rows(int passes) { return (kMaxRows * (passes - 1) + 1) / passes; }

// The sum of 16 lanes, always by the same tree.
LORRY_INLINE float reduce_add(const V16& a) {
  float t[16];
  store(t, a);
  for (int half = 8; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) t[i] += t[i + half];
  }
  return t[0];
}
LORRY_INLINE float reduce_max(const V16& a) {
  float t[16];
  store(t, a);
  for (int half = 8; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) t[i] = t[i + half] > t[i] ? t[i + half] : t[i];
  }
  return t[0];
}

LORRY_INLINE V16 round_to_bf16(const V16& a) {
  uint16_t t[16];
  narrow(t, a);
  return widen(t);
}
LORRY_INLINE V16 round_to_f16(const V16& a) {
  uint16_t t[16];
  store_f16(t, a);
  return load_f16(t);
}

// e^x to 2 ulp; 0 below -87, where the result would be denormal, and e^88 above 88.
// x = n ln 2 + r with |r| <= ln 2 / 2; e^r by the polynomial of Cephes' expf.
LORRY_INLINE V16 exp(const V16& x) {
  const V16 high = min(set1(88.0F), x);
  const V16 shift = set1(12582912.0F);  // 1.5 * 2^23: adding it rounds to an integer
  const V16 t = fma(high, set1(1.44269504F), shift);
  const V16 n = sub(t, shift);
  V16 r = fma(n, set1(-0.693359375F), high);
  r = fma(n, set1(2.12194440e-4F), r);
  V16 p = fma(set1(1.9875691500e-4F), r, set1(1.3981999507e-3F));
  p = fma(p, r, set1(8.3334519073e-3F));
  p = fma(p, r, set1(4.1665795894e-2F));
  p = fma(p, r, set1(1.6666665459e-1F));
  p = fma(p, r, set1(5.0000001201e-1F));
  p = fma(p, mul(r, r), add(r, set1(1.0F)));
  return select_lt(x, set1(-87.0F), zero(), scale_by_pow2(p, t));
}

struct Bf16 {
  using Element = uint16_t;
  using X = uint16_t;
  using Step = P16;
  static constexpr int kStep = 2;     // k of one multiplication step
  static constexpr int kVector = 32;  // elements of a panel from 16 columns to the next
  static constexpr bool kWide = false;

  static LORRY_INLINE P16 steps(const uint16_t* p) { return load_pairs(p); }
  static LORRY_INLINE P16 steps_n(const uint16_t* p, int n) { return load_pairs_n(p, n); }
  static LORRY_INLINE P16 broadcast(const uint16_t* x) {
    uint32_t pair;
    __builtin_memcpy(&pair, x, 4);
    return set1_pair(pair);
  }
  // The last element of a row of odd length.
  static LORRY_INLINE P16 broadcast_last(const uint16_t* x) { return set1_pair(*x); }
  static LORRY_INLINE V16 dot(const P16& a, const P16& b, const V16& c) {
    return cpu::dot(a, b, c);
  }
  static LORRY_INLINE V16 widen(const uint16_t* p) { return cpu::widen(p); }
  static LORRY_INLINE V16 widen_n(const uint16_t* p, int n) { return cpu::widen_n(p, n); }
  static LORRY_INLINE void narrow(uint16_t* p, const V16& a) { cpu::narrow(p, a); }
  static LORRY_INLINE void narrow_n(uint16_t* p, const V16& a, int n) { cpu::narrow_n(p, a, n); }
};

// Weights as Bf16, x already widened: each pair is two FMA, the odd element first, as vdpbf16ps has
// it. For processors without vdpbf16ps, and for those whose vdpbf16ps takes longer than two FMA.
struct Bf16Wide {
  using Element = uint16_t;
  using X = float;
  using Narrow = Bf16;  // x as it is given
  static constexpr int kStep = 2;
  static constexpr int kVector = 32;
  static constexpr bool kWide = true;

  // Which k of a step is multiplied in turn 0 and 1, and its weights of 16 columns.
  static constexpr int k_of(int turn) { return 1 - turn; }
  static LORRY_INLINE V16 weights(const uint16_t* p, int k) {
    return k == 1 ? load_odd(p) : load_even(p);
  }
};

struct F16 {
  using Element = uint16_t;
  using X = uint16_t;
  using Step = V16;
  static constexpr int kStep = 1;
  static constexpr int kVector = 16;
  static constexpr bool kWide = false;

  static LORRY_INLINE V16 steps(const uint16_t* p) { return load_f16(p); }
  static LORRY_INLINE V16 steps_n(const uint16_t* p, int n) { return load_f16_n(p, n); }
  static LORRY_INLINE V16 broadcast(const uint16_t* x) { return set1_f16(*x); }
  static LORRY_INLINE V16 broadcast_last(const uint16_t* x) { return set1_f16(*x); }
  static LORRY_INLINE V16 dot(const V16& a, const V16& b, const V16& c) { return fma(a, b, c); }
  static LORRY_INLINE V16 widen(const uint16_t* p) { return load_f16(p); }
  static LORRY_INLINE V16 widen_n(const uint16_t* p, int n) { return load_f16_n(p, n); }
  static LORRY_INLINE void narrow(uint16_t* p, const V16& a) { store_f16(p, a); }
  static LORRY_INLINE void narrow_n(uint16_t* p, const V16& a, int n) { store_f16_n(p, a, n); }
};

// Weights as F16, x already widened; a step is 64 columns of one k, then of the next.
struct F16Wide {
  using Element = uint16_t;
  using X = float;
  using Narrow = F16;
  static constexpr int kStep = 2;
  static constexpr int kVector = 16;
  static constexpr bool kWide = true;

  static constexpr int k_of(int turn) { return turn; }
  static LORRY_INLINE V16 weights(const uint16_t* p, int k) { return load_f16(p + 64 * k); }
};

struct F32 {
  using Element = float;
  using X = float;
  using Step = V16;
  static constexpr int kStep = 1;
  static constexpr int kVector = 16;
  static constexpr bool kWide = false;

  static LORRY_INLINE V16 steps(const float* p) { return load(p); }
  static LORRY_INLINE V16 steps_n(const float* p, int n) { return load_n(p, n); }
  static LORRY_INLINE V16 broadcast(const float* x) { return set1(*x); }
  static LORRY_INLINE V16 broadcast_last(const float* x) { return set1(*x); }
  static LORRY_INLINE V16 dot(const V16& a, const V16& b, const V16& c) { return fma(a, b, c); }
  static LORRY_INLINE V16 widen(const float* p) { return load(p); }
  static LORRY_INLINE V16 widen_n(const float* p, int n) { return load_n(p, n); }
  static LORRY_INLINE void narrow(float* p, const V16& a) { store(p, a); }
  static LORRY_INLINE void narrow_n(float* p, const V16& a, int n) { store_n(p, a, n); }
};

// Calls f(i, n) for the vectors of [0, size): n = 16, less for the last.
template <class F>
LORRY_INLINE void for_vectors(int64_t size, F&& f) {
  int64_t i = 0;
  for (; i + 16 <= size; i += 16) f(i, 16);
  if (i < size) f(i, static_cast<int>(size - i));
}
LORRY_INLINE V16 load_some(const float* p, int n) { return n == 16 ? load(p) : load_n(p, n); }
LORRY_INLINE void store_some(float* p, const V16& a, int n) {
  n == 16 ? store(p, a) : store_n(p, a, n);
}
template <class A>
LORRY_INLINE V16 widen_some(const typename A::Element* p, int n) {
  return n == 16 ? A::widen(p) : A::widen_n(p, n);
}
template <class A>
LORRY_INLINE void narrow_some(typename A::Element* p, const V16& a, int n) {
  n == 16 ? A::narrow(p, a) : A::narrow_n(p, a, n);
}

}  // namespace
}  // namespace lorry::cpu
