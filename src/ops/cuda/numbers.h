// Numbers of 8 and 16 bits, and activations as the kernels read and write them.
#pragma once
#include "ops/cuda/device.h"
#include "ops/cuda/kernels.h"
#ifndef __CUDACC__
#include "base/float16.h"
#endif

namespace lorry::cuda {

// The types of 16 bits: from and to its bits, and two of them in a word as they lie in memory, the
// first in the low half.
struct Bf16 {
  uint16_t bits;

  LORRY_DEVICE static float from(uint16_t x) { return as_float(static_cast<uint32_t>(x) << 16); }
  LORRY_DEVICE static float low(uint32_t pair) { return as_float(pair << 16); }
  LORRY_DEVICE static float high(uint32_t pair) { return as_float(pair & 0xffff0000U); }
#ifdef __CUDACC__
  LORRY_DEVICE static uint16_t to(float x) {
    uint16_t r;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r) : "f"(x));
    return r;
  }
  LORRY_DEVICE static uint32_t pack(float low, float high) {
    uint32_t r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
  }
#else
  static uint16_t to(float x) { return to_bf16(x).bits; }
  static uint32_t pack(float low, float high) {
    return to(low) | static_cast<uint32_t>(to(high)) << 16;
  }
#endif
  static constexpr uint16_t kInfinity = 0x7f80;
};

struct F16 {
  uint16_t bits;

#ifdef __CUDACC__
  LORRY_DEVICE static float from(uint16_t x) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(x));
    return f;
  }
  LORRY_DEVICE static uint16_t to(float x) {
    uint16_t r;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r) : "f"(x));
    return r;
  }
  LORRY_DEVICE static uint32_t pack(float low, float high) {
    uint32_t r;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
  }
#else
  static float from(uint16_t x) { return to_float(f16{x}); }
  static uint16_t to(float x) { return to_f16(x).bits; }
  static uint32_t pack(float low, float high) {
    return to(low) | static_cast<uint32_t>(to(high)) << 16;
  }
#endif
  LORRY_DEVICE static float low(uint32_t pair) { return from(static_cast<uint16_t>(pair)); }
  LORRY_DEVICE static float high(uint32_t pair) { return from(static_cast<uint16_t>(pair >> 16)); }
  static constexpr uint16_t kInfinity = 0x7c00;
};

template <class T>
constexpr bool kIsBf16 = false;
template <>
constexpr bool kIsBf16<Bf16> = true;

// e4m3: exponent bias 7, no infinity, 0x7f is NaN.
LORRY_DEVICE float from_e4m3(uint32_t x) {
  const uint32_t magnitude = x & 0x7fU;
  const uint32_t sign = (x & 0x80U) << 24;
  if (magnitude == 0x7fU) return as_float(sign | 0x7fc00000U);
  const float value = magnitude < 8U ? static_cast<float>(magnitude) * 0x1p-9F
                                     : as_float((magnitude << 20) + (120U << 23));
  return as_float(as_bits(value) | sign);
}

// f(a value of the type of activations).
template <class F>
void with_act(Act act, F&& f) {
  if (act == Act::bf16) return f(Bf16{});
  if (act == Act::f16) return f(F16{});
  f(float{});
}
// The same where they have 16 bits.
template <class F>
void with_16_bits(Act act, F&& f) {
  act == Act::bf16 ? f(Bf16{}) : f(F16{});
}

LORRY_DEVICE float widen(float x) { return x; }
LORRY_DEVICE float widen(Bf16 x) { return Bf16::from(x.bits); }
LORRY_DEVICE float widen(F16 x) { return F16::from(x.bits); }
LORRY_DEVICE float widen(int8_t x) { return static_cast<float>(x); }
LORRY_DEVICE void narrow(float& to, float x) { to = x; }
LORRY_DEVICE void narrow(Bf16& to, float x) { to.bits = Bf16::to(x); }
LORRY_DEVICE void narrow(F16& to, float x) { to.bits = F16::to(x); }

}  // namespace lorry::cuda
