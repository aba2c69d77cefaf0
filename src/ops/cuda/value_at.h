// One value of a packed weight as a float: for x in f32, where exactness comes before speed.
#pragma once
#include "ops/cuda/layout.h"
#include "ops/cuda/numbers.h"

namespace lorry::cuda {

// Value (row, k) of a row block as linear multiplies by it; fp8: without its scale.
LORRY_DEVICE float value_at(const WeightPlan& plan, const unsigned char* block, int row, int k) {
  const unsigned char* chunk = block + k / kChunk * chunk_bytes(plan.values);
  const int within = k % kChunk;
  switch (plan.values) {
    case Values::f32:
      return reinterpret_cast<const float*>(chunk)[place_of(row, within)];
    case Values::fp8:
      return from_e4m3(chunk[place_of_fp8(row, within)]);
    default:
      break;
  }
  const bool int8 = plan.values == Values::s8;
  // int8 lies less 128, so that it is signed.
  const int q = int8 ? reinterpret_cast<const int8_t*>(chunk)[place_of_s8(row, within)] + 128
                     : chunk[byte_of_s4(row, within)] >> row / 8 * 4 & 15;
  const int at = k / plan.group * kRowBlock + row;
  const float scale =
      plan.half ? F16::from(reinterpret_cast<const uint16_t*>(block + plan.scales_offset())[at])
                : reinterpret_cast<const float*>(block + plan.scales_offset())[at];
  const int zero = plan.zeros ? block[plan.zeros_offset() + at] : int8 ? 128 : 8;
  return static_cast<float>(q - zero) * scale;
}

}  // namespace lorry::cuda
