// Weights of four bits as bytes, once for many rows.
#pragma once
#include "ops/cpu/kernels.h"

namespace lorry::cpu {
namespace {

// `steps` of a panel of int4, each as two of int8: to [steps][2][64][4].
LORRY_INLINE void unpack_quads(uint8_t* to, const uint8_t* from, int64_t steps) {
  for (int64_t i = 0; i < steps; ++i, from += 256, to += 512) {
    unroll<4>([&](auto j) LORRY_UNROLLED {
      store_quads(to + 64 * j, load_low(from + 64 * j));
      store_quads(to + 256 + 64 * j, load_high(from + 64 * j));
    });
  }
}

}  // namespace
}  // namespace lorry::cpu
