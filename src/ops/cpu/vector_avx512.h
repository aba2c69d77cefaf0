// V16 and P16 as one AVX-512 register; see vector_scalar.h for what each function does.
#pragma once
// g++ 12's own header reads an uninitialised register where the mask says that it is not used.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#include <stdint.h>

#define LORRY_INLINE inline __attribute__((always_inline))

namespace lorry::cpu {
namespace {

struct V16 {
  __m512 v;
};
struct P16 {
  __m512i v;
};

// 32 registers: 6 rows times 64 columns of sums, 4 of weights, one of the broadcast input.
constexpr int kMaxRows = 6;
constexpr int kShrinkRows = 6;
constexpr int kSpinChains = 12;
constexpr int tile_vectors(int) { return 4; }

LORRY_INLINE __mmask16 first_lanes(int n) {
  return static_cast<__mmask16>(n >= 16 ? 0xffffU : n <= 0 ? 0U : (1U << n) - 1U);
}

LORRY_INLINE V16 set1(float x) { return {_mm512_set1_ps(x)}; }
LORRY_INLINE V16 zero() { return {_mm512_setzero_ps()}; }
LORRY_INLINE V16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
LORRY_INLINE V16 load_n(const float* p, int n) {
  return {_mm512_maskz_loadu_ps(first_lanes(n), p)};
}
LORRY_INLINE void store(float* p, V16 a) { _mm512_storeu_ps(p, a.v); }
LORRY_INLINE void store_n(float* p, V16 a, int n) { _mm512_mask_storeu_ps(p, first_lanes(n), a.v); }
LORRY_INLINE V16 add(V16 a, V16 b) { return {_mm512_add_ps(a.v, b.v)}; }
LORRY_INLINE V16 sub(V16 a, V16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
LORRY_INLINE V16 mul(V16 a, V16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
LORRY_INLINE V16 div(V16 a, V16 b) { return {_mm512_div_ps(a.v, b.v)}; }
LORRY_INLINE V16 fma(V16 a, V16 b, V16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
// c += a * b. Assembly, because g++ also takes the forms that overwrite a or b, and with 24 sums
// live ends up moving registers about and spilling one of them.
LORRY_INLINE void accumulate(V16& c, V16 a, V16 b) {
  asm("vfmadd231ps %2, %1, %0" : "+v"(c.v) : "v"(a.v), "v"(b.v));
}
LORRY_INLINE V16 max(V16 a, V16 b) { return {_mm512_max_ps(a.v, b.v)}; }
LORRY_INLINE V16 min(V16 a, V16 b) { return {_mm512_min_ps(a.v, b.v)}; }
LORRY_INLINE V16 select_lt(V16 x, V16 y, V16 a, V16 b) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(x.v, y.v, _CMP_LT_OQ), b.v, a.v)};
}
LORRY_INLINE V16 select_bits(uint32_t mask, V16 a, V16 b) {
  return {_mm512_mask_blend_ps(static_cast<__mmask16>(mask), b.v, a.v)};
}
LORRY_INLINE V16 scale_by_pow2(V16 p, V16 t) {
  const __m512i shifted = _mm512_slli_epi32(_mm512_castps_si512(t.v), 23);
  return {_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p.v), shifted))};
}

LORRY_INLINE V16 widen_bits(__m256i half) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16))};
}
LORRY_INLINE V16 widen(const uint16_t* p) {
  return widen_bits(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
LORRY_INLINE V16 widen_n(const uint16_t* p, int n) {
  return widen_bits(_mm256_maskz_loadu_epi16(first_lanes(n), p));
}
// Not vcvtneps2bf16, which flushes denormals that the other instruction sets would keep.
LORRY_INLINE __m256i rounded(V16 a) {
  const __m512i u = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  const __m512i even = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd);
  const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  const __m512i r = _mm512_mask_or_epi32(even, nan, u, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(r, 16));
}
LORRY_INLINE void narrow(uint16_t* p, V16 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), rounded(a));
}
LORRY_INLINE void narrow_n(uint16_t* p, V16 a, int n) {
  _mm256_mask_storeu_epi16(p, first_lanes(n), rounded(a));
}

LORRY_INLINE P16 load_pairs(const uint16_t* p) { return {_mm512_loadu_si512(p)}; }
LORRY_INLINE P16 load_pairs_n(const uint16_t* p, int n) {
  return {_mm512_maskz_loadu_epi32(first_lanes(n), p)};
}
LORRY_INLINE P16 set1_pair(uint32_t x) { return {_mm512_set1_epi32(static_cast<int>(x))}; }
LORRY_INLINE V16 load_odd(const uint16_t* p) {
  const __m512i odd = _mm512_set1_epi32(static_cast<int>(0xffff0000U));
  return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(p), odd))};
}
LORRY_INLINE V16 load_even(const uint16_t* p) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(p), 16))};
}
// As dot, in two FMA: the odd elements first.
LORRY_INLINE V16 dot_fma(P16 a, P16 b, V16 c) {
  const __m512i odd = _mm512_set1_epi32(static_cast<int>(0xffff0000U));
  const auto high = [&](P16 x) { return V16{_mm512_castsi512_ps(_mm512_and_si512(x.v, odd))}; };
  const auto low = [](P16 x) { return V16{_mm512_castsi512_ps(_mm512_slli_epi32(x.v, 16))}; };
  return fma(low(a), low(b), fma(high(a), high(b), c));
}
LORRY_INLINE V16 dot(P16 a, P16 b, V16 c) {
  return {_mm512_dpbf16_ps(c.v, reinterpret_cast<__m512bh>(a.v), reinterpret_cast<__m512bh>(b.v))};
}

struct I16 {
  __m512i v;
};
struct W64 {
  __m512i v;
};
struct X4 {
  __m512i v;
};

LORRY_INLINE V16 as_floats(I16 a) { return {_mm512_castsi512_ps(a.v)}; }
LORRY_INLINE I16 as_ints(V16 a) { return {_mm512_castps_si512(a.v)}; }
LORRY_INLINE I16 set1_int(int32_t x) { return {_mm512_set1_epi32(x)}; }
LORRY_INLINE V16 to_floats(I16 a) { return {_mm512_cvtepi32_ps(a.v)}; }
LORRY_INLINE __m512i sixteen_bytes(const uint8_t* p) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
LORRY_INLINE I16 multiply_bytes(const uint8_t* p, int32_t by) {
  return {_mm512_mullo_epi32(sixteen_bytes(p), _mm512_set1_epi32(by))};
}
LORRY_INLINE V16 load_bytes(const uint8_t* p) { return {_mm512_cvtepi32_ps(sixteen_bytes(p))}; }
LORRY_INLINE V16 load_signed(const int8_t* p) {
  return {_mm512_cvtepi32_ps(
      _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}
LORRY_INLINE W64 load_quads(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
LORRY_INLINE W64 load_low(const uint8_t* p) {
  return {_mm512_and_si512(_mm512_loadu_si512(p), _mm512_set1_epi8(15))};
}
LORRY_INLINE W64 load_high(const uint8_t* p) {
  const __m512i shifted = _mm512_srli_epi16(_mm512_loadu_si512(p), 4);
  return {_mm512_and_si512(shifted, _mm512_set1_epi8(15))};
}
LORRY_INLINE void store_quads(uint8_t* p, W64 w) { _mm512_storeu_si512(p, w.v); }
LORRY_INLINE X4 broadcast_quad(const int8_t* p) {
  int quad;
  __builtin_memcpy(&quad, p, 4);
  return {_mm512_set1_epi32(quad)};
}
LORRY_INLINE void accumulate(I16& c, W64 w, X4 x) {
  asm("vpdpbusd %2, %1, %0" : "+v"(c.v) : "v"(w.v), "v"(x.v));
}
LORRY_INLINE V16 load_field(const uint8_t* p, int shift, int width) {
  const __m512i bits = _mm512_srl_epi32(_mm512_loadu_si512(p), _mm_cvtsi32_si128(shift));
  return {_mm512_cvtepi32_ps(_mm512_and_si512(bits, _mm512_set1_epi32((1 << width) - 1)))};
}
LORRY_INLINE V16 load_f16(const uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
LORRY_INLINE V16 load_f16_n(const uint16_t* p, int n) {
  return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_lanes(n), p))};
}
LORRY_INLINE V16 set1_f16(uint16_t x) {
  return {_mm512_cvtph_ps(_mm256_set1_epi16(static_cast<int16_t>(x)))};
}
LORRY_INLINE void store_f16(uint16_t* p, V16 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
LORRY_INLINE void store_f16_n(uint16_t* p, V16 a, int n) {
  _mm256_mask_storeu_epi16(p, first_lanes(n), _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
LORRY_INLINE void store_low_bytes(void* p, V16 a) {
  _mm_storeu_si128(static_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_castps_si512(a.v)));
}
LORRY_INLINE void widen_e4m3(uint16_t* to, const uint8_t* p) {
  const __m512i denormal = _mm512_broadcast_i32x4(
      _mm_setr_epi16(0, 0x3b00, 0x3b80, 0x3bc0, 0x3c00, 0x3c20, 0x3c40, 0x3c60));
  const __m512i u = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  const __m512i sign = _mm512_slli_epi16(_mm512_and_si512(u, _mm512_set1_epi16(0x80)), 8);
  const __m512i magnitude = _mm512_and_si512(u, _mm512_set1_epi16(0x7f));
  const __mmask32 small = _mm512_cmplt_epu16_mask(magnitude, _mm512_set1_epi16(8));
  const __mmask32 nan = _mm512_cmpeq_epu16_mask(magnitude, _mm512_set1_epi16(0x7f));
  __m512i value = _mm512_add_epi16(_mm512_slli_epi16(magnitude, 4), _mm512_set1_epi16(0x3c00));
  value = _mm512_mask_permutexvar_epi16(value, small, magnitude, denormal);
  value = _mm512_mask_mov_epi16(value, nan, _mm512_set1_epi16(0x7fc0));
  _mm512_storeu_si512(to, _mm512_or_si512(value, sign));
}

}  // namespace
}  // namespace lorry::cpu
