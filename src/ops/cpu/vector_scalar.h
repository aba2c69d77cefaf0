// V16: 16 floats, and P16: 16 pairs of bf16, in plain C++. The two other files of this kind give
// the same functions with the same bits. Included by one .cpp each, inside namespace lorry::cpu.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "base/float16.h"

#define LORRY_INLINE inline __attribute__((always_inline))

namespace lorry::cpu {
namespace {

struct V16 {
  float v[16];
};
struct P16 {
  uint32_t v[16];
};

constexpr int kMaxRows = 1;     // rows of a matmul tile
constexpr int kShrinkRows = 1;  // rows that share the loads of A
constexpr int kSpinChains = 4;
// Vectors of 16 columns in a tile of `rows` rows.
constexpr int tile_vectors(int) { return 4; }

LORRY_INLINE uint32_t bits_of(float x) {
  uint32_t u;
  memcpy(&u, &x, 4);
  return u;
}
LORRY_INLINE float from_bits(uint32_t u) {
  float x;
  memcpy(&x, &u, 4);
  return x;
}

template <class F>
LORRY_INLINE V16 lanes(F&& f) {
  V16 r;
  for (int i = 0; i < 16; ++i) r.v[i] = f(i);
  return r;
}

LORRY_INLINE V16 set1(float x) {
  return lanes([&](int) { return x; });
}
LORRY_INLINE V16 zero() { return set1(0.0F); }
LORRY_INLINE V16 load(const float* p) {
  return lanes([&](int i) { return p[i]; });
}
LORRY_INLINE V16 load_n(const float* p, int n) {
  return lanes([&](int i) { return i < n ? p[i] : 0.0F; });
}
LORRY_INLINE void store(float* p, const V16& a) { memcpy(p, a.v, sizeof a.v); }
LORRY_INLINE void store_n(float* p, const V16& a, int n) {
  for (int i = 0; i < 16 && i < n; ++i) p[i] = a.v[i];
}
LORRY_INLINE V16 add(const V16& a, const V16& b) {
  return lanes([&](int i) { return a.v[i] + b.v[i]; });
}
LORRY_INLINE V16 sub(const V16& a, const V16& b) {
  return lanes([&](int i) { return a.v[i] - b.v[i]; });
}
LORRY_INLINE V16 mul(const V16& a, const V16& b) {
  return lanes([&](int i) { return a.v[i] * b.v[i]; });
}
LORRY_INLINE V16 div(const V16& a, const V16& b) {
  return lanes([&](int i) { return a.v[i] / b.v[i]; });
}
LORRY_INLINE V16 fma(const V16& a, const V16& b, const V16& c) {
  return lanes([&](int i) { return __builtin_fmaf(a.v[i], b.v[i], c.v[i]); });
}
LORRY_INLINE void accumulate(V16& c, const V16& a, const V16& b) { c = fma(a, b, c); }
// b where either is NaN, as the instructions do.
LORRY_INLINE V16 max(const V16& a, const V16& b) {
  return lanes([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
LORRY_INLINE V16 min(const V16& a, const V16& b) {
  return lanes([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
// x < y ? a : b
LORRY_INLINE V16 select_lt(const V16& x, const V16& y, const V16& a, const V16& b) {
  return lanes([&](int i) { return x.v[i] < y.v[i] ? a.v[i] : b.v[i]; });
}
// Lanes of a where the bit is set, else of b.
LORRY_INLINE V16 select_bits(uint32_t mask, const V16& a, const V16& b) {
  return lanes([&](int i) { return (mask >> i & 1U) != 0 ? a.v[i] : b.v[i]; });
}
// p * 2^n, n being the low bits of the float t = 1.5 * 2^23 + n.
LORRY_INLINE V16 scale_by_pow2(const V16& p, const V16& t) {
  return lanes([&](int i) { return from_bits(bits_of(p.v[i]) + (bits_of(t.v[i]) << 23)); });
}

LORRY_INLINE V16 widen_n(const uint16_t* p, int n) {
  return lanes([&](int i) { return i < n ? from_bits(static_cast<uint32_t>(p[i]) << 16) : 0.0F; });
}
LORRY_INLINE V16 widen(const uint16_t* p) { return widen_n(p, 16); }
LORRY_INLINE void narrow_n(uint16_t* p, const V16& a, int n) {
  for (int i = 0; i < 16 && i < n; ++i) {
    const uint32_t u = bits_of(a.v[i]);
    const bool nan = (u & 0x7fffffffU) > 0x7f800000U;
    const uint32_t r = nan ? u | 0x400000U : u + 0x7fffU + (u >> 16 & 1U);
    p[i] = static_cast<uint16_t>(r >> 16);
  }
}
LORRY_INLINE void narrow(uint16_t* p, const V16& a) { narrow_n(p, a, 16); }

LORRY_INLINE P16 load_pairs(const uint16_t* p) {
  P16 r;
  memcpy(r.v, p, sizeof r.v);
  return r;
}
LORRY_INLINE P16 load_pairs_n(const uint16_t* p, int n) {
  P16 r{};
  for (int i = 0; i < 16 && i < n; ++i) memcpy(&r.v[i], p + 2 * i, 4);
  return r;
}
LORRY_INLINE P16 set1_pair(uint32_t x) {
  P16 r;
  for (uint32_t& v : r.v) v = x;
  return r;
}
// The odd or the even element of 16 pairs.
LORRY_INLINE V16 load_odd(const uint16_t* p) {
  return lanes([&](int i) { return from_bits(static_cast<uint32_t>(p[2 * i + 1]) << 16); });
}
LORRY_INLINE V16 load_even(const uint16_t* p) {
  return lanes([&](int i) { return from_bits(static_cast<uint32_t>(p[2 * i]) << 16); });
}
// c + the pair's odd product, then + its even one: what vdpbf16ps does.
LORRY_INLINE V16 dot(const P16& a, const P16& b, const V16& c) {
  return lanes([&](int i) {
    const float odd =
        __builtin_fmaf(from_bits(a.v[i] & 0xffff0000U), from_bits(b.v[i] & 0xffff0000U), c.v[i]);
    return __builtin_fmaf(from_bits(a.v[i] << 16), from_bits(b.v[i] << 16), odd);
  });
}

// For quantised weights: I16, 16 sums; W64, 4 weights (u8) for each of them; X4, 4 inputs (s8).
struct I16 {
  int32_t v[16];
};
struct W64 {
  uint8_t v[64];
};
struct X4 {
  int8_t v[4];
};

// Sums pass through memory as the bits of floats.
LORRY_INLINE V16 as_floats(const I16& a) {
  V16 r;
  memcpy(r.v, a.v, sizeof r.v);
  return r;
}
LORRY_INLINE I16 as_ints(const V16& a) {
  I16 r;
  memcpy(r.v, a.v, sizeof r.v);
  return r;
}
LORRY_INLINE I16 set1_int(int32_t x) {
  I16 r;
  for (int32_t& v : r.v) v = x;
  return r;
}
LORRY_INLINE V16 to_floats(const I16& a) {
  return lanes([&](int i) { return static_cast<float>(a.v[i]); });
}
// Sums may wrap on the way; the last fits.
LORRY_INLINE int32_t wrap(uint32_t x) { return static_cast<int32_t>(x); }
LORRY_INLINE I16 multiply_bytes(const uint8_t* p, int32_t by) {
  I16 r;
  for (int i = 0; i < 16; ++i) r.v[i] = wrap(p[i] * static_cast<uint32_t>(by));
  return r;
}
LORRY_INLINE V16 load_bytes(const uint8_t* p) {
  return lanes([&](int i) { return static_cast<float>(p[i]); });
}
LORRY_INLINE V16 load_signed(const int8_t* p) {
  return lanes([&](int i) { return static_cast<float>(p[i]); });
}
// The quads of 64 bytes, of their low nibbles, of their high ones.
LORRY_INLINE W64 load_quads(const uint8_t* p) {
  W64 r;
  memcpy(r.v, p, sizeof r.v);
  return r;
}
LORRY_INLINE W64 load_low(const uint8_t* p) {
  W64 r;
  for (int i = 0; i < 64; ++i) r.v[i] = p[i] & 15U;
  return r;
}
LORRY_INLINE W64 load_high(const uint8_t* p) {
  W64 r;
  for (int i = 0; i < 64; ++i) r.v[i] = p[i] >> 4;
  return r;
}
LORRY_INLINE void store_quads(uint8_t* p, const W64& w) { memcpy(p, w.v, sizeof w.v); }
LORRY_INLINE X4 broadcast_quad(const int8_t* p) {
  X4 r;
  memcpy(r.v, p, sizeof r.v);
  return r;
}
LORRY_INLINE void accumulate(I16& c, const W64& w, const X4& x) {
  for (int i = 0; i < 16; ++i) {
    const int sum = w.v[4 * i] * x.v[0] + w.v[4 * i + 1] * x.v[1] + w.v[4 * i + 2] * x.v[2] +
                    w.v[4 * i + 3] * x.v[3];
    c.v[i] = wrap(static_cast<uint32_t>(c.v[i]) + static_cast<uint32_t>(sum));
  }
}
// Bits [shift, shift + width) of 16 u32.
LORRY_INLINE V16 load_field(const uint8_t* p, int shift, int width) {
  return lanes([&](int i) {
    uint32_t u;
    memcpy(&u, p + 4 * i, 4);
    return static_cast<float>(static_cast<int32_t>(u >> shift & ((1U << width) - 1U)));
  });
}
// f16 keeps its denormals, whether those of f32 are flushed or not.
LORRY_INLINE V16 load_f16_n(const uint16_t* p, int n) {
  return lanes([&](int i) { return i < n ? to_float(f16{p[i]}) : 0.0F; });
}
LORRY_INLINE V16 load_f16(const uint16_t* p) { return load_f16_n(p, 16); }
LORRY_INLINE V16 set1_f16(uint16_t x) { return set1(to_float(f16{x})); }
LORRY_INLINE void store_f16_n(uint16_t* p, const V16& a, int n) {
  for (int i = 0; i < 16 && i < n; ++i) p[i] = to_f16(a.v[i]).bits;
}
LORRY_INLINE void store_f16(uint16_t* p, const V16& a) { store_f16_n(p, a, 16); }
// The lowest byte of each lane's bits.
LORRY_INLINE void store_low_bytes(void* p, const V16& a) {
  for (int i = 0; i < 16; ++i) static_cast<uint8_t*>(p)[i] = static_cast<uint8_t>(bits_of(a.v[i]));
}
// 32 values in e4m3 as bf16.
LORRY_INLINE void widen_e4m3(uint16_t* to, const uint8_t* p) {
  static constexpr uint16_t kDenormal[8] = {0,      0x3b00, 0x3b80, 0x3bc0,
                                            0x3c00, 0x3c20, 0x3c40, 0x3c60};
  for (int i = 0; i < 32; ++i) {
    const uint32_t magnitude = p[i] & 0x7fU;
    const uint32_t value = magnitude == 0x7f ? 0x7fc0U
                           : magnitude < 8   ? kDenormal[magnitude]
                                             : (magnitude << 4) + 0x3c00U;
    to[i] = static_cast<uint16_t>(value | (p[i] & 0x80U) << 8);
  }
}

}  // namespace
}  // namespace lorry::cpu
