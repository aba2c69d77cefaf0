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

// Bytes are kept as two times 16 bits, the even and the odd ones: pmaddubsw would saturate.
struct I16 {
  __m256i lo, hi;
};
struct W64 {
  __m256i even_lo, odd_lo, even_hi, odd_hi;
};
struct X4 {
  __m256i even, odd;
};

LORRY_INLINE V16 as_floats(I16 a) { return {_mm256_castsi256_ps(a.lo), _mm256_castsi256_ps(a.hi)}; }
LORRY_INLINE I16 as_ints(V16 a) { return {_mm256_castps_si256(a.lo), _mm256_castps_si256(a.hi)}; }
LORRY_INLINE I16 set1_int(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
LORRY_INLINE V16 to_floats(I16 a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }
LORRY_INLINE __m256 eight_signed(const int8_t* p) {
  return _mm256_cvtepi32_ps(
      _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
LORRY_INLINE V16 load_signed(const int8_t* p) { return {eight_signed(p), eight_signed(p + 8)}; }
LORRY_INLINE __m256i eight_bytes(const uint8_t* p) {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
LORRY_INLINE I16 multiply_bytes(const uint8_t* p, int32_t by) {
  const __m256i b = _mm256_set1_epi32(by);
  return {_mm256_mullo_epi32(eight_bytes(p), b), _mm256_mullo_epi32(eight_bytes(p + 8), b)};
}
LORRY_INLINE V16 load_bytes(const uint8_t* p) {
  return {_mm256_cvtepi32_ps(eight_bytes(p)), _mm256_cvtepi32_ps(eight_bytes(p + 8))};
}
LORRY_INLINE __m256i load_32(const uint8_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
LORRY_INLINE W64 load_quads(const uint8_t* p) {
  const __m256i low = _mm256_set1_epi16(0xff);
  const __m256i a = load_32(p);
  const __m256i b = load_32(p + 32);
  return {_mm256_and_si256(a, low), _mm256_srli_epi16(a, 8), _mm256_and_si256(b, low),
          _mm256_srli_epi16(b, 8)};
}
LORRY_INLINE W64 load_low(const uint8_t* p) {
  const __m256i low = _mm256_set1_epi16(0xf);
  const __m256i a = load_32(p);
  const __m256i b = load_32(p + 32);
  return {_mm256_and_si256(a, low), _mm256_and_si256(_mm256_srli_epi16(a, 8), low),
          _mm256_and_si256(b, low), _mm256_and_si256(_mm256_srli_epi16(b, 8), low)};
}
LORRY_INLINE W64 load_high(const uint8_t* p) {
  const __m256i low = _mm256_set1_epi16(0xf);
  const __m256i a = load_32(p);
  const __m256i b = load_32(p + 32);
  return {_mm256_and_si256(_mm256_srli_epi16(a, 4), low), _mm256_srli_epi16(a, 12),
          _mm256_and_si256(_mm256_srli_epi16(b, 4), low), _mm256_srli_epi16(b, 12)};
}
LORRY_INLINE void store_quads(uint8_t* p, const W64& w) {
  const auto bytes = [](__m256i even, __m256i odd) {
    return _mm256_or_si256(even, _mm256_slli_epi16(odd, 8));
  };
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), bytes(w.even_lo, w.odd_lo));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 32), bytes(w.even_hi, w.odd_hi));
}
LORRY_INLINE X4 broadcast_quad(const int8_t* p) {
  int quad;
  __builtin_memcpy(&quad, p, 4);
  const __m256i all = _mm256_set1_epi32(quad);
  return {_mm256_srai_epi16(_mm256_slli_epi16(all, 8), 8), _mm256_srai_epi16(all, 8)};
}
LORRY_INLINE __m256i dot_quads(__m256i c, __m256i even, __m256i odd, X4 x) {
  c = _mm256_add_epi32(c, _mm256_madd_epi16(even, x.even));
  return _mm256_add_epi32(c, _mm256_madd_epi16(odd, x.odd));
}
LORRY_INLINE void accumulate(I16& c, W64 w, X4 x) {
  c.lo = dot_quads(c.lo, w.even_lo, w.odd_lo, x);
  c.hi = dot_quads(c.hi, w.even_hi, w.odd_hi, x);
}
LORRY_INLINE __m256 field_of(__m256i a, __m128i shift, int width) {
  return _mm256_cvtepi32_ps(
      _mm256_and_si256(_mm256_srl_epi32(a, shift), _mm256_set1_epi32((1 << width) - 1)));
}
LORRY_INLINE V16 load_field(const uint8_t* p, int shift, int width) {
  const __m128i by = _mm_cvtsi32_si128(shift);
  return {field_of(load_32(p), by, width), field_of(load_32(p + 32), by, width)};
}
LORRY_INLINE V16 load_f16(const uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
          _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}
LORRY_INLINE V16 load_f16_n(const uint16_t* p, int n) {
  uint16_t tail[16] = {};
  for (int i = 0; i < 16 && i < n; ++i) tail[i] = p[i];
  return load_f16(tail);
}
LORRY_INLINE V16 set1_f16(uint16_t x) {
  const __m256 all = _mm256_cvtph_ps(_mm_set1_epi16(static_cast<int16_t>(x)));
  return {all, all};
}
LORRY_INLINE void store_f16(uint16_t* p, V16 a) {
  auto* to = reinterpret_cast<__m128i*>(p);
  _mm_storeu_si128(to, _mm256_cvtps_ph(a.lo, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128(to + 1, _mm256_cvtps_ph(a.hi, _MM_FROUND_TO_NEAREST_INT));
}
LORRY_INLINE void store_f16_n(uint16_t* p, V16 a, int n) {
  uint16_t all[16];
  store_f16(all, a);
  for (int i = 0; i < 16 && i < n; ++i) p[i] = all[i];
}
LORRY_INLINE void store_low_bytes(void* p, V16 a) {
  const __m256i low = _mm256_set1_epi32(0xff);
  const __m256i words = _mm256_permute4x64_epi64(
      _mm256_packus_epi32(_mm256_and_si256(_mm256_castps_si256(a.lo), low),
                          _mm256_and_si256(_mm256_castps_si256(a.hi), low)),
      0xd8);
  _mm_storeu_si128(static_cast<__m128i*>(p), _mm_packus_epi16(_mm256_castsi256_si128(words),
                                                              _mm256_extracti128_si256(words, 1)));
}
LORRY_INLINE __m256i e4m3_half(__m256i u) {
  const __m256i denormal = _mm256_broadcastsi128_si256(
      _mm_setr_epi16(0, 0x3b00, 0x3b80, 0x3bc0, 0x3c00, 0x3c20, 0x3c40, 0x3c60));
  const __m256i sign = _mm256_slli_epi16(_mm256_and_si256(u, _mm256_set1_epi16(0x80)), 8);
  const __m256i magnitude = _mm256_and_si256(u, _mm256_set1_epi16(0x7f));
  // The two bytes of entry m: 2 m and 2 m + 1.
  const __m256i index = _mm256_add_epi16(_mm256_mullo_epi16(magnitude, _mm256_set1_epi16(0x0202)),
                                         _mm256_set1_epi16(0x0100));
  const __m256i small = _mm256_cmpgt_epi16(_mm256_set1_epi16(8), magnitude);
  const __m256i nan = _mm256_cmpeq_epi16(magnitude, _mm256_set1_epi16(0x7f));
  __m256i value = _mm256_add_epi16(_mm256_slli_epi16(magnitude, 4), _mm256_set1_epi16(0x3c00));
  value = _mm256_blendv_epi8(value, _mm256_shuffle_epi8(denormal, index), small);
  value = _mm256_blendv_epi8(value, _mm256_set1_epi16(0x7fc0), nan);
  return _mm256_or_si256(value, sign);
}
LORRY_INLINE void widen_e4m3(uint16_t* to, const uint8_t* p) {
  for (int i = 0; i < 32; i += 16) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + i));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), e4m3_half(_mm256_cvtepu8_epi16(half)));
  }
}

}  // namespace
}  // namespace lorry::cpu
