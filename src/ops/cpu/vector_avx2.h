// V16 and P16 as two AVX registers; see vector_scalar.h for what each function does.
#pragma once
#include <immintrin.h>
#include <stdint.h>

#define LORRY_INLINE inline __attribute__((always_inline))

namespace lorry::cpu {
namespace {

struct V16 {
  __m256 lo, hi;
};
struct P16 {
  __m256i lo, hi;
};

// 16 registers: a tile holds at most 4 rows times 16 columns, or 1 times 64.
constexpr int kMaxRows = 4;
constexpr int kShrinkRows = 1;
constexpr int kSpinChains = 5;
constexpr int tile_vectors(int rows) { return rows == 1 ? 4 : 1; }

LORRY_INLINE V16 set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
LORRY_INLINE V16 zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
LORRY_INLINE V16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
// The first n of eight lanes, n of any size.
LORRY_INLINE __m256i first_lanes(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
LORRY_INLINE V16 load_n(const float* p, int n) {
  return {_mm256_maskload_ps(p, first_lanes(n)), _mm256_maskload_ps(p + 8, first_lanes(n - 8))};
}
LORRY_INLINE void store(float* p, V16 a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
LORRY_INLINE void store_n(float* p, V16 a, int n) {
  _mm256_maskstore_ps(p, first_lanes(n), a.lo);
  _mm256_maskstore_ps(p + 8, first_lanes(n - 8), a.hi);
}
LORRY_INLINE V16 add(V16 a, V16 b) {
  return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
}
LORRY_INLINE V16 sub(V16 a, V16 b) {
  return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
}
LORRY_INLINE V16 mul(V16 a, V16 b) {
  return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
}
LORRY_INLINE V16 div(V16 a, V16 b) {
  return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)};
}
LORRY_INLINE V16 fma(V16 a, V16 b, V16 c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
LORRY_INLINE void accumulate(V16& c, V16 a, V16 b) { c = fma(a, b, c); }
LORRY_INLINE V16 max(V16 a, V16 b) {
  return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)};
}
LORRY_INLINE V16 min(V16 a, V16 b) {
  return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)};
}
LORRY_INLINE V16 select_lt(V16 x, V16 y, V16 a, V16 b) {
  return {_mm256_blendv_ps(b.lo, a.lo, _mm256_cmp_ps(x.lo, y.lo, _CMP_LT_OQ)),
          _mm256_blendv_ps(b.hi, a.hi, _mm256_cmp_ps(x.hi, y.hi, _CMP_LT_OQ))};
}
LORRY_INLINE __m256 lanes_of(uint32_t mask) {
  const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i set = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(mask)), bit);
  return _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, bit));
}
LORRY_INLINE V16 select_bits(uint32_t mask, V16 a, V16 b) {
  return {_mm256_blendv_ps(b.lo, a.lo, lanes_of(mask)),
          _mm256_blendv_ps(b.hi, a.hi, lanes_of(mask >> 8))};
}
LORRY_INLINE __m256 scale_half(__m256 p, __m256 t) {
  return _mm256_castsi256_ps(
      _mm256_add_epi32(_mm256_castps_si256(p), _mm256_slli_epi32(_mm256_castps_si256(t), 23)));
}
LORRY_INLINE V16 scale_by_pow2(V16 p, V16 t) {
  return {scale_half(p.lo, t.lo), scale_half(p.hi, t.hi)};
}

LORRY_INLINE __m256 widen_half(const uint16_t* p) {
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}
LORRY_INLINE V16 widen(const uint16_t* p) { return {widen_half(p), widen_half(p + 8)}; }
LORRY_INLINE V16 widen_n(const uint16_t* p, int n) {
  uint16_t tail[16] = {};
  for (int i = 0; i < 16 && i < n; ++i) tail[i] = p[i];
  return widen(tail);
}
LORRY_INLINE __m256i rounded_half(__m256 a) {
  const __m256i u = _mm256_castps_si256(a);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  const __m256i even = _mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), odd);
  const __m256i quiet = _mm256_or_si256(u, _mm256_set1_epi32(0x400000));
  const __m256 nan = _mm256_cmp_ps(a, a, _CMP_UNORD_Q);
  return _mm256_srli_epi32(_mm256_blendv_epi8(even, quiet, _mm256_castps_si256(nan)), 16);
}
LORRY_INLINE void narrow(uint16_t* p, V16 a) {
  const __m256i packed = _mm256_packus_epi32(rounded_half(a.lo), rounded_half(a.hi));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xd8));
}
LORRY_INLINE void narrow_n(uint16_t* p, V16 a, int n) {
  uint16_t all[16];
  narrow(all, a);
  for (int i = 0; i < 16 && i < n; ++i) p[i] = all[i];
}

LORRY_INLINE P16 load_pairs(const uint16_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 16))};
}
LORRY_INLINE P16 load_pairs_n(const uint16_t* p, int n) {
  const int* pairs = reinterpret_cast<const int*>(p);
  return {_mm256_maskload_epi32(pairs, first_lanes(n)),
          _mm256_maskload_epi32(pairs + 8, first_lanes(n - 8))};
}
LORRY_INLINE P16 set1_pair(uint32_t x) {
  return {_mm256_set1_epi32(static_cast<int>(x)), _mm256_set1_epi32(static_cast<int>(x))};
}
LORRY_INLINE __m256 odd_half(__m256i a) {
  return _mm256_castsi256_ps(_mm256_and_si256(a, _mm256_set1_epi32(static_cast<int>(0xffff0000U))));
}
LORRY_INLINE __m256 even_half(__m256i a) { return _mm256_castsi256_ps(_mm256_slli_epi32(a, 16)); }
LORRY_INLINE V16 load_odd(const uint16_t* p) {
  const P16 a = load_pairs(p);
  return {odd_half(a.lo), odd_half(a.hi)};
}
LORRY_INLINE V16 load_even(const uint16_t* p) {
  const P16 a = load_pairs(p);
  return {even_half(a.lo), even_half(a.hi)};
}
LORRY_INLINE __m256 dot_half(__m256i a, __m256i b, __m256 c) {
  c = _mm256_fmadd_ps(odd_half(a), odd_half(b), c);
  return _mm256_fmadd_ps(even_half(a), even_half(b), c);
}
LORRY_INLINE V16 dot(P16 a, P16 b, V16 c) {
  return {dot_half(a.lo, b.lo, c.lo), dot_half(a.hi, b.hi, c.hi)};
}

}  // namespace
}  // namespace lorry::cpu
