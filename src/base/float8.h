// Conversions between float and e4m3 (OCP 8-bit floating point, exponent bias 7: no infinity, 0x7f
// and 0xff are NaN).
#pragma once
#include <bit>
#include <cstdint>

namespace lorry {

constexpr float from_e4m3(uint8_t x) {
  const uint32_t magnitude = x & 0x7fU;
  const uint32_t sign = (x & 0x80U) << 24;
  if (magnitude == 0x7f) return std::bit_cast<float>(sign | 0x7fc00000U);
  const float value = magnitude < 8 ? static_cast<float>(magnitude) * 0x1p-9F
                                    : std::bit_cast<float>((magnitude << 20) + (120U << 23));
  return std::bit_cast<float>(std::bit_cast<uint32_t>(value) | sign);
}

// To nearest even; beyond the largest value, 448, that.
inline uint8_t to_e4m3(float x) {
  const uint32_t u = std::bit_cast<uint32_t>(x);
  const uint32_t sign = u >> 24 & 0x80U;
  const uint32_t magnitude = u & 0x7fffffffU;
  if (magnitude > 0x7f800000U) return static_cast<uint8_t>(sign | 0x7fU);
  if (magnitude >= 0x43e00000U) return static_cast<uint8_t>(sign | 0x7eU);  // 448
  if (magnitude < 0x3c800000U) {  // below 2^-6: adding 2^14 rounds to a multiple of 2^-9
    const float shifted = std::bit_cast<float>(magnitude) + 0x1p14F;
    return static_cast<uint8_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x46800000U));
  }
  const uint32_t rounded = magnitude + 0x7ffffU + (magnitude >> 20 & 1U);
  return static_cast<uint8_t>(sign | ((rounded >> 20) - (120U << 3)));
}

}  // namespace lorry
