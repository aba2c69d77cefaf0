// Random weights in their packed form: where a value lies does not matter.
#include "ops/cuda/kernels.h"
#include "ops/cuda/launch.h"
#include "ops/cuda/numbers.h"

namespace lorry::cuda {

namespace {

constexpr int kThreads = 256;

// splitmix64.
LORRY_DEVICE uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15U;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9U;
  x = (x ^ x >> 27) * 0x94d049bb133111ebU;
  return x ^ x >> 31;
}

// Bytes of random bits made fit: -128 is no value of int8, and 0x7f, 0xff are NaN in fp8.
LORRY_DEVICE uint64_t fit_bytes(uint64_t bits, Values values) {
  uint64_t out = 0;
  for (int i = 0; i < 64; i += 8) {
    uint64_t byte = bits >> i & 0xffU;
    if (values == Values::s8 && byte == 0x80U) byte = 0x81U;
    if (values == Values::fp8 && (byte & 0x7fU) == 0x7fU) byte ^= 1U;
    out |= byte << i;
  }
  return out;
}

// Eight bytes of values. Uniform in +- sqrt(3 / in) where they are numbers by themselves.
LORRY_DEVICE uint64_t values_of(uint64_t bits, Values values, float most) {
  if (is_16_bits(values)) {
    uint64_t out = 0;
    for (int i = 0; i < 64; i += 16) {
      const auto r = static_cast<int16_t>(bits >> i);
      const float x = static_cast<float>(r) * (most / 32768.0F);
      out |= uint64_t{values == Values::bf16 ? Bf16::to(x) : F16::to(x)} << i;
    }
    return out;
  }
  if (values == Values::f32) {
    const auto low = static_cast<int32_t>(bits);
    const auto high = static_cast<int32_t>(bits >> 32);
    const float factor = most / 2147483648.0F;
    return uint64_t{as_bits(static_cast<float>(high) * factor)} << 32 |
           as_bits(static_cast<float>(low) * factor);
  }
  return values == Values::s4 ? bits : fit_bytes(bits, values);
}

// The scale that gives stored values a variance of 1 / in; theirs is that of all their codes.
LORRY_DEVICE float scale_of(const WeightPlan& plan) {
  const float one = 1.0F / sqrtf(static_cast<float>(plan.in));
  constexpr float kInt8 = 73.9F;
  constexpr float kInt4 = 4.637F;  // less 8
  constexpr float kE4m3 = 107.2F;
  return one / (plan.values == Values::s8 ? kInt8 : plan.values == Values::s4 ? kInt4 : kE4m3);
}

// grid: parts of a row block, row blocks.
LORRY_KERNEL(kThreads) random_kernel(RandomArgs a) {
  begin_kernel();
  const int64_t words = a.plan.block_bytes() / 8;
  const int64_t values = a.plan.scales_offset() / 8;
  const float most = sqrtf(3.0F / static_cast<float>(a.plan.in));
  const float scale = a.plan.scales > 0 ? scale_of(a.plan) : 0.0F;
  const uint64_t one = a.plan.half ? uint64_t{F16::to(scale)} : uint64_t{as_bits(scale)};
  const uint64_t scales = a.plan.half ? one | one << 16 | one << 32 | one << 48 : one | one << 32;
  for (int64_t b = blockIdx.y; b < a.blocks; b += gridDim.y) {
    auto* block = reinterpret_cast<uint64_t*>(a.w + b * a.plan.block_bytes());
    for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < words;
         i += int64_t{gridDim.x} * kThreads) {
      const uint64_t bits =
          mix(a.seed ^ static_cast<uint64_t>(b * words + i) * 0xd6e8feb86659fd93U);
      block[i] = i < values ? values_of(bits, a.plan.values, most) : scales;
    }
  }
}

}  // namespace

void randomise(Stream s, const RandomArgs& a) {
  constexpr int64_t kParts = 16;
  const Grid grid{kParts, a.blocks < 65535 ? a.blocks : 65535};
  start<RandomArgs, random_kernel>("random", grid, kThreads, 0, s, a);
}

}  // namespace lorry::cuda
