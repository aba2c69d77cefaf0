// The kernels that work along one row: norms, activations, rope, sums, conversions, probes.
#pragma once
#include "ops/cpu/kernels.h"

namespace lorry::cpu {
namespace {

// The sum of f(i, n) over the vectors of a row: four sums by vector modulo 4. Lanes past the end
// must be 0.
template <class F>
LORRY_INLINE float sum_of(int64_t size, F&& f) {
  V16 c[4] = {zero(), zero(), zero(), zero()};
  int64_t i = 0;
  for (; i + 64 <= size; i += 64) {
    unroll<4>([&](auto j) LORRY_UNROLLED { c[j] = f(i + 16 * j, 16, c[j]); });
  }
  for (int j = 0; i < size; i += 16, ++j) {
    const int n = size - i < 16 ? static_cast<int>(size - i) : 16;
    c[j] = f(i, n, c[j]);
  }
  return reduce_add(add(add(c[0], c[1]), add(c[2], c[3])));
}

template <class A>
void norm(const NormArgs& a) {
  const auto n_f = static_cast<float>(a.n);
  float mean = 0;
  if (a.centered) {
    mean = sum_of(a.n, [&](int64_t i, int n, const V16& c)
                           LORRY_UNROLLED { return add(c, load_some(a.x + i, n)); }) /
           n_f;
  }
  const V16 center = set1(mean);
  const float squares = sum_of(a.n, [&](int64_t i, int n, const V16& c) LORRY_UNROLLED {
    const V16 x = sub(load_some(a.x + i, n), center);
    const V16 inside = n == 16 ? x : select_bits((1U << n) - 1U, x, zero());
    return fma(inside, inside, c);
  });
  const V16 factor = set1(1.0F / __builtin_sqrtf(squares / n_f + a.eps));
  auto* y = static_cast<typename A::Element*>(a.y);
  for_vectors(a.n, [&](int64_t i, int n) LORRY_UNROLLED {
    const V16 x = mul(sub(load_some(a.x + i, n), center), factor);
    narrow_some<A>(y + i, mul(x, load_some(a.weight + i, n)), n);
  });
}

LORRY_INLINE V16 silu(const V16& x) { return div(x, add(set1(1.0F), exp(sub(zero(), x)))); }

// x (1 + tanh(u)) / 2 = x / (1 + e^-2u), u = sqrt(2 / pi) (x + 0.044715 x^3).
LORRY_INLINE V16 gelu_tanh(const V16& x) {
  const V16 cubic = fma(mul(x, x), mul(set1(0.044715F), x), x);
  return div(x, add(set1(1.0F), exp(mul(set1(-1.59576912F), cubic))));
}

// x Phi(x). Phi by erfc's rational Chebyshev fit (Numerical Recipes, erfcc: 1.2e-7 relative
// everywhere); e^(-x^2 / 2) apart, with the rounding error of the square put back.
LORRY_INLINE V16 gelu_erf(const V16& x) {
  const V16 one = set1(1.0F);
  const V16 z = mul(max(x, sub(zero(), x)), set1(0.707106781F));
  const V16 t = div(one, fma(set1(0.5F), z, one));
  V16 p = fma(set1(0.17087277F), t, set1(-0.82215223F));
  p = fma(p, t, set1(1.48851587F));
  p = fma(p, t, set1(-1.13520398F));
  p = fma(p, t, set1(0.27886807F));
  p = fma(p, t, set1(-0.18628806F));
  p = fma(p, t, set1(0.09678418F));
  p = fma(p, t, set1(0.37409196F));
  p = fma(p, t, set1(1.00002368F));
  p = fma(p, t, set1(-1.26551223F));
  const V16 half = mul(set1(-0.5F), x);
  const V16 square = mul(half, x);
  const V16 lost = fma(half, x, sub(zero(), square));
  const V16 gauss = mul(exp(square), add(one, lost));
  const V16 tail = mul(set1(0.5F), mul(t, mul(gauss, exp(p))));
  const V16 phi = select_lt(x, zero(), tail, sub(one, tail));
  // Beyond -13 the tail is 0 in f32 (and its square may not be finite).
  return select_lt(x, set1(-13.0F), zero(), mul(x, phi));
}

template <class A, class F>
LORRY_INLINE void glu_with(typename A::Element* y, const float* gu, int64_t size, F&& f) {
  for_vectors(size, [&](int64_t i, int n) LORRY_UNROLLED {
    const float* gate = gu + i / 64 * 128 + i % 64;
    // The padding to a multiple of 64 is there to be read.
    narrow_some<A>(y + i, mul(f(load(gate)), load(gate + 64)), n);
  });
}

template <class A>
void glu(void* y, const float* gu, int64_t n, int kind) {
  auto* out = static_cast<typename A::Element*>(y);
  if (kind == 0) return glu_with<A>(out, gu, n, [](const V16& x) { return silu(x); });
  if (kind == 1) return glu_with<A>(out, gu, n, [](const V16& x) { return gelu_tanh(x); });
  glu_with<A>(out, gu, n, [](const V16& x) { return gelu_erf(x); });
}

template <class A>
void add_silu_row(void* y, const void* x, const float* v, const float* bias, int64_t size) {
  auto* out = static_cast<typename A::Element*>(y);
  const auto* in = static_cast<const typename A::Element*>(x);
  for_vectors(size, [&](int64_t i, int n) LORRY_UNROLLED {
    const V16 step = silu(add(load_some(v + i, n), load_some(bias + i, n)));
    narrow_some<A>(out + i, add(widen_some<A>(in + i, n), step), n);
  });
}

template <class A>
void widen_row(float* y, const void* x, int64_t size) {
  const auto* in = static_cast<const typename A::Element*>(x);
  for_vectors(size, [&](int64_t i, int n)
                        LORRY_UNROLLED { store_some(y + i, widen_some<A>(in + i, n), n); });
}

template <class A>
void narrow_row(void* y, const float* x, int64_t size) {
  auto* out = static_cast<typename A::Element*>(y);
  for_vectors(size, [&](int64_t i, int n)
                        LORRY_UNROLLED { narrow_some<A>(out + i, load_some(x + i, n), n); });
}

// What a row to be quantised to s8 symmetrically is multiplied by, and the scale that undoes it:
// NaN for a row that is not finite, both 0 where nothing but denormals is left.
struct RowScale {
  float factor, scale;
};
template <class A>
LORRY_INLINE RowScale row_scale(const typename A::Element* x, int64_t size) {
  V16 most = zero();
  V16 nan = zero();  // 0 while all are finite
  for_vectors(size, [&](int64_t i, int n) LORRY_UNROLLED {
    const V16 a = widen_some<A>(x + i, n);
    most = max(most, max(a, sub(zero(), a)));
    nan = fma(a, zero(), nan);
  });
  if (reduce_add(nan) != 0.0F) return {0, __builtin_nanf("")};
  const float top = reduce_max(most);
  const float scale = top / 127.0F;
  return {scale > 0 ? 127.0F / top : 0.0F, scale};
}

void quantise_kv(int8_t* y, int64_t pitch, float* scale, const float* x, int64_t size) {
  const RowScale row = row_scale<F32>(x, size);
  *scale = row.scale;
  const V16 shift = set1(12582912.0F);  // 1.5 * 2^23: adding it rounds to an integer
  for_vectors(size, [&](int64_t i, int n) LORRY_UNROLLED {
    const V16 a = row.factor > 0 ? mul(load_some(x + i, n), set1(row.factor)) : zero();
    int8_t q[16];
    store_low_bytes(q, add(a, shift));
    for (int lane = 0; lane < n; ++lane) y[(i + lane) * pitch] = q[lane];
  });
}

template <class A>
void divide_row(void* y, const float* x, float by, int64_t size) {
  auto* out = static_cast<typename A::Element*>(y);
  for_vectors(size, [&](int64_t i, int n) LORRY_UNROLLED {
    narrow_some<A>(out + i, div(load_some(x + i, n), set1(by)), n);
  });
}

void add_row(float* x, const float* y, int64_t size) {
  for_vectors(size, [&](int64_t i, int n) LORRY_UNROLLED {
    store_some(x + i, add(load_some(x + i, n), load_some(y + i, n)), n);
  });
}

void multiply_row(float* x, const float* y, int64_t size) {
  for_vectors(size, [&](int64_t i, int n) LORRY_UNROLLED {
    store_some(x + i, mul(load_some(x + i, n), load_some(y + i, n)), n);
  });
}

// The order of the operands lets NaN through.
void clamp_row(float* x, float limit, int64_t size) {
  for_vectors(size, [&](int64_t i, int n) LORRY_UNROLLED {
    store_some(x + i, min(set1(limit), max(set1(-limit), load_some(x + i, n))), n);
  });
}

void rope_head(float* x, const float* cos, const float* sin, int64_t half) {
  for_vectors(half, [&](int64_t i, int n) LORRY_UNROLLED {
    const V16 a = load_some(x + i, n);
    const V16 b = load_some(x + half + i, n);
    const V16 c = load_some(cos + i, n);
    const V16 s = load_some(sin + i, n);
    store_some(x + i, fma(a, c, sub(zero(), mul(b, s))), n);
    store_some(x + half + i, fma(b, c, mul(a, s)), n);
  });
}

void scale_row(float* y, const float* x, float w, int64_t size) {
  for_vectors(size, [&](int64_t i, int n) LORRY_UNROLLED {
    store_some(y + i, mul(set1(w), load_some(x + i, n)), n);
  });
}

void axpy_row(float* y, const float* x, float w, int64_t size) {
  for_vectors(size, [&](int64_t i, int n) LORRY_UNROLLED {
    store_some(y + i, fma(set1(w), load_some(x + i, n), load_some(y + i, n)), n);
  });
}

void softmax_row(float* y, const float* x, int64_t size) {
  float most = x[0];
  for (int64_t i = 1; i < size; ++i) most = x[i] > most ? x[i] : most;
  for_vectors(size, [&](int64_t i, int n) LORRY_UNROLLED {
    store_some(y + i, exp(sub(load_some(x + i, n), set1(most))), n);
  });
  const float sum = sum_of(size, [&](int64_t i, int n, const V16& c)
                                     LORRY_UNROLLED { return add(c, load_some(y + i, n)); });
  for_vectors(size, [&](int64_t i, int n) LORRY_UNROLLED {
    store_some(y + i, div(load_some(y + i, n), set1(sum)), n);
  });
}

// The first of the largest of x [n]; -1 where one is NaN or +inf, or none is above -inf.
int64_t arg_max_row(const float* x, int64_t size) {
  const V16 infinity = set1(kInfinity);
  // Of each lane: the largest, and where the vectors began in which it came first.
  V16 best = set1(-kInfinity);
  V16 start = zero();
  V16 bad[4] = {zero(), zero(), zero(), zero()};  // 0 while all are below +inf
  const auto see = [&](const V16& v, int64_t i) LORRY_UNROLLED {
    // In vectors of 16, as a float: exact for rows of up to 2^28.
    start = select_lt(best, v, set1(static_cast<float>(i / 16)), start);
    best = max(v, best);
  };
  int64_t i = 0;
  for (; i + 64 <= size; i += 64) {
    V16 v[4];
    unroll<4>([&](auto j) LORRY_UNROLLED {
      v[j] = load(x + i + 16 * j);
      bad[j] = select_lt(v[j], infinity, bad[j], infinity);
    });
    see(max(max(v[0], v[1]), max(v[2], v[3])), i);
  }
  for (; i < size; i += 16) {
    const int n = size - i < 16 ? static_cast<int>(size - i) : 16;
    V16 v = load_some(x + i, n);
    if (n < 16) v = select_bits((1U << n) - 1U, v, set1(-kInfinity));
    bad[0] = select_lt(v, infinity, bad[0], infinity);
    see(v, i);
  }
  const float top = reduce_max(best);
  if (top == -kInfinity || reduce_max(max(max(bad[0], bad[1]), max(bad[2], bad[3]))) != 0) {
    return -1;
  }
  const V16 after = set1(static_cast<float>(size));
  auto at =
      16 * static_cast<int64_t>(-reduce_max(sub(zero(), select_lt(best, set1(top), after, start))));
  while (x[at] != top) ++at;
  return at;
}

void tops_of_panel(const TopsArgs& a) {
  const V16 infinity = set1(kInfinity);
  for (int32_t r = 0; r < a.rows; ++r) {
    const float* y = a.y + r * a.y_pitch;
    V16 most = set1(-kInfinity);
    for (int32_t c = 0; c < a.cols; c += 16) {
      const int n = a.cols - c < 16 ? a.cols - c : 16;
      const V16 v = n == 16 ? load(y + c) : load_some(y + c, n);
      const V16 good = select_lt(v, infinity, v, infinity);
      most = max(n == 16 ? good : select_bits((1U << n) - 1U, good, most), most);
    }
    const float top = reduce_max(most);
    RowTop& known = a.tops[r];
    if (top < known.top || top == -kInfinity || (top == known.top && a.column > known.at)) continue;
    known = {top, -1};
    if (top == kInfinity) continue;
    int32_t at = 0;
    while (y[at] != top) ++at;
    known.at = a.column + at;
  }
}

// The sum of e^(x - top) over x [n], top being the largest and finite.
double sum_exp_row(const float* x, float top, int64_t size) {
  constexpr int64_t kPart = 1024;  // a sum of so few in f32 loses nothing that counts
  const V16 most = set1(top);
  double sum = 0;
  for (int64_t first = 0; first < size; first += kPart) {
    const float* part = x + first;
    const int64_t left = size - first;
    const float some =
        sum_of(left < kPart ? left : kPart, [&](int64_t i, int n, const V16& c) LORRY_UNROLLED {
          const V16 e = exp(sub(load_some(part + i, n), most));
          return add(c, n == 16 ? e : select_bits((1U << n) - 1U, e, zero()));
        });
    sum += static_cast<double>(some);
  }
  return sum;
}

// Four streams of one line each, prefetched as matmul does.
void read_memory(const void* p, int64_t bytes, float* sink) {
  const char* at = static_cast<const char*>(p);
  V16 c[4] = {zero(), zero(), zero(), zero()};
  for (int64_t i = 0; i + 256 <= bytes; i += 256) {
    unroll<4>([&](auto j) LORRY_UNROLLED {
      __builtin_prefetch(at + i + 6144 + 64 * j, 0, 2);
      c[j] = add(c[j], load(reinterpret_cast<const float*>(at + i + 64 * j)));
    });
  }
  *sink = reduce_add(add(add(c[0], c[1]), add(c[2], c[3])));
}

}  // namespace
}  // namespace lorry::cpu
