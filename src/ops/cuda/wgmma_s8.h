// wgmma of s8 by s8, sums in s32. A tile of x: as wgmma.h has it, its rows 128 inputs.
#pragma once
#include "ops/cuda/wgmma.h"

namespace lorry::cuda {

#ifdef LORRY_WGMMA_CODE

#define LORRY_OUT4(i) "+r"(c[i]), "+r"(c[(i) + 1]), "+r"(c[(i) + 2]), "+r"(c[(i) + 3])
#define LORRY_OUT16(i) LORRY_OUT4(i), LORRY_OUT4((i) + 4), LORRY_OUT4((i) + 8), LORRY_OUT4((i) + 12)
#define LORRY_P0 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define LORRY_P1 LORRY_P0 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define LORRY_WGMMA(n, outputs, a0, a1, a2, a3, b, keep, ...)                                     \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #keep                                         \
               ", 0;\nwgmma.mma_async.sync.aligned.m64n" #n "k32.s32.s8.s8 {" outputs "}, {%" #a0 \
               ", %" #a1 ", %" #a2 ", %" #a3 "}, %" #b ", p;\n}\n"                                \
               : __VA_ARGS__                                                                      \
               : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "l"(x), "r"(static_cast<int>(add)))

// c [64, kN] = a x^T, or added to c, 32 inputs: of warp w of the warpgroup rows 16 w ... + 15 as
// mma_s8 has them, c[4 j ...] its columns 8 j ... + 7. Ends with wgmma_wait.
template <int kN>
LORRY_DEVICE void wgmma_s8(int (&c)[kN / 2], const Word4& a, TileOperand x, bool add) {
  static_assert(kN == 32 || kN == 64);
  if constexpr (kN == 32) {
    LORRY_WGMMA(32, LORRY_P0, 16, 17, 18, 19, 20, 21, LORRY_OUT16(0));
  } else {
    LORRY_WGMMA(64, LORRY_P1, 32, 33, 34, 35, 36, 37, LORRY_OUT16(0), LORRY_OUT16(16));
  }
}

#undef LORRY_OUT4
#undef LORRY_OUT16
#undef LORRY_P0
#undef LORRY_P1
#undef LORRY_WGMMA

#elif defined(__CUDACC__)
// Not for this device; the host does not start kernels that would come here.
template <int kN>
LORRY_DEVICE void wgmma_s8(int (&)[kN / 2], const Word4&, TileOperand, bool) {
  __trap();
}
#else
template <int kN>
LORRY_DEVICE void wgmma_s8(int (&c)[kN / 2], const Word4& a, TileOperand x, bool add) {
  const simt::Slot* all = simt::exchange({{a.x, a.y, a.z, a.w}});
  const int g = simt::lane() / 4;
  for (int n = 0; n < kN / 2; ++n) {
    const int i = n % 4;
    const int column = n / 4 * 8 + simt::lane() % 4 * 2 + i % 2;
    int sum = add ? c[n] : 0;
    for (int word = 0; word < 8; ++word) {
      const uint32_t left = all[4 * g + word % 4].word[i / 2 + word / 4 * 2];
      const int byte = x.bytes + 4 * word;
      uint32_t right = 0;
      memcpy(&right, x.tile + place_in_tile(column, byte / 16) + byte % 16, 4);
      for (int b = 0; b < 4; ++b) {
        sum += static_cast<int8_t>(left >> (8 * b)) * static_cast<int8_t>(right >> (8 * b));
      }
    }
    c[n] = sum;
  }
}
#endif

}  // namespace lorry::cuda
