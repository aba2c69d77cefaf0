#include "base/float16.h"

#include <bit>
#include <cmath>
#include <limits>

#include <gtest/gtest.h>

namespace lorry {
namespace {

// The value of a 16-bit pattern from the definition of the format, without bit tricks.
float defined_value(uint32_t bits, int exponent_bits, int mantissa_bits) {
  const uint32_t mantissa = bits & ((1U << mantissa_bits) - 1U);
  const int exponent = static_cast<int>((bits >> mantissa_bits) & ((1U << exponent_bits) - 1U));
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const double sign = (bits & 0x8000U) != 0 ? -1.0 : 1.0;
  if (exponent == (1 << exponent_bits) - 1) {
    return mantissa == 0 ? static_cast<float>(sign) * std::numeric_limits<float>::infinity()
                         : std::numeric_limits<float>::quiet_NaN();
  }
  const double fraction = std::ldexp(static_cast<double>(mantissa), -mantissa_bits);
  const double value =
      exponent == 0 ? std::ldexp(fraction, 1 - bias) : std::ldexp(1.0 + fraction, exponent - bias);
  return static_cast<float>(sign * value);
}

TEST(Float16, every_bf16_pattern_has_its_value_and_survives_the_round_trip) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float x = to_float(bf16{static_cast<uint16_t>(bits)});
    const float expected = defined_value(bits, 8, 7);
    if (std::isnan(expected)) {
      ASSERT_TRUE(std::isnan(x)) << bits;
      ASSERT_TRUE(std::isnan(to_float(to_bf16(x)))) << bits;
    } else {
      ASSERT_EQ(std::bit_cast<uint32_t>(x), std::bit_cast<uint32_t>(expected)) << bits;
      ASSERT_EQ(to_bf16(x).bits, bits);
    }
  }
}

TEST(Float16, every_f16_pattern_has_its_value_and_survives_the_round_trip) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float x = to_float(f16{static_cast<uint16_t>(bits)});
    const float expected = defined_value(bits, 5, 10);
    if (std::isnan(expected)) {
      ASSERT_TRUE(std::isnan(x)) << bits;
      ASSERT_TRUE(std::isnan(to_float(to_f16(x)))) << bits;
    } else {
      ASSERT_EQ(std::bit_cast<uint32_t>(x), std::bit_cast<uint32_t>(expected)) << bits;
      ASSERT_EQ(to_f16(x).bits, bits);
    }
  }
}

// Half way between two neighbours goes to the even one, a little more or less to the nearer.
template <class Half, class Convert>
void expect_nearest_even(uint32_t last_finite, Convert convert) {
  for (uint32_t bits = 0; bits < last_finite; ++bits) {
    const float low = to_float(Half{static_cast<uint16_t>(bits)});
    const float high = to_float(Half{static_cast<uint16_t>(bits + 1)});
    const auto middle = static_cast<float>((static_cast<double>(low) + high) / 2);
    const uint32_t even = (bits & 1U) == 0 ? bits : bits + 1;
    ASSERT_EQ(convert(middle).bits, even) << bits;
    ASSERT_EQ(convert(-middle).bits, even | 0x8000U) << bits;
    ASSERT_EQ(convert(std::nextafter(middle, low)).bits, bits) << bits;
    ASSERT_EQ(convert(std::nextafter(middle, high)).bits, bits + 1) << bits;
  }
}

TEST(Float16, to_bf16_rounds_to_nearest_even) {
  expect_nearest_even<bf16>(0x7f7f, [](float x) { return to_bf16(x); });
}

TEST(Float16, to_f16_rounds_to_nearest_even) {
  expect_nearest_even<f16>(0x7bff, [](float x) { return to_f16(x); });
}

TEST(Float16, too_large_becomes_infinity_and_nan_stays_nan) {
  const float inf = std::numeric_limits<float>::infinity();
  EXPECT_EQ(to_bf16(std::numeric_limits<float>::max()).bits, 0x7f80);
  EXPECT_EQ(to_bf16(-inf).bits, 0xff80);
  EXPECT_EQ(to_f16(65519.996F).bits, 0x7bff);
  EXPECT_EQ(to_f16(65520.0F).bits, 0x7c00);
  EXPECT_EQ(to_f16(-1e30F).bits, 0xfc00);
  EXPECT_EQ(to_f16(inf).bits, 0x7c00);
  EXPECT_EQ(to_f16(1e-30F).bits, 0);
  // A NaN whose payload is only in the bits that are cut off.
  const auto low_nan = std::bit_cast<float>(0x7f800001U);
  EXPECT_TRUE(std::isnan(to_float(to_bf16(low_nan))));
  EXPECT_TRUE(std::isnan(to_float(to_f16(low_nan))));
}

}  // namespace
}  // namespace lorry
