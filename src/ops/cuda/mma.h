// Products on the tensor cores, by a warp. Lane l = 4 g + q, g = l / 4.
#pragma once
#include "ops/cuda/numbers.h"

namespace lorry::cuda {

struct Float4 {
  float v[4];
};
struct Int4 {
  int v[4];
};

#ifndef __CUDACC__
// An element of c is f(sum, word of its row of a, word of its column of b) for each word in order
// of k: with rows and columns of eight words, the operands of all products lie alike.
template <class C, class F>
void multiply_words(C& c, const Word4& a, uint32_t b0, uint32_t b1, F&& f) {
  const simt::Slot* all = simt::exchange({{a.x, a.y, a.z, a.w, b0, b1}});
  const int g = simt::lane() / 4;
  const int q = simt::lane() % 4;
  for (int i = 0; i < 4; ++i) {
    const int column = 2 * q + i % 2;
    for (int word = 0; word < 8; ++word) {
      c.v[i] = f(c.v[i], all[4 * g + word % 4].word[i / 2 + word / 4 * 2],
                 all[4 * column + word % 4].word[4 + word / 4]);
    }
  }
}
#endif

#define LORRY_MMA(type)                                                               \
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type                 \
               ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
               : "+f"(c.v[0]), "+f"(c.v[1]), "+f"(c.v[2]), "+f"(c.v[3])               \
               : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1))

// c [16, 8] += a [16, 16] b [16, 8], T: Bf16 or F16, sums in f32.
//   a: words of two neighbours in k: (row g, k 2q), (g + 8, 2q), (g, 2q + 8), (g + 8, 2q + 8);
//   b: (k 2q, column g), (2q + 8, g);  c: (row g, columns 2q, 2q + 1), (g + 8, the same).
template <class T>
LORRY_DEVICE void mma(Float4& c, const Word4& a, uint32_t b0, uint32_t b1) {
#ifdef __CUDACC__
  if constexpr (kIsBf16<T>) {
    LORRY_MMA("bf16");
  } else {
    LORRY_MMA("f16");
  }
#else
  multiply_words(c, a, b0, b1, [](float sum, uint32_t left, uint32_t right) {
    sum = fmaf(T::low(left), T::low(right), sum);
    return fmaf(T::high(left), T::high(right), sum);
  });
#endif
}
#undef LORRY_MMA

// c [16, 8] += a [16, 32] b [32, 8], s8, sums in s32.
//   a: words of four neighbours in k: (row g, k 4q), (g + 8, 4q), (g, 4q + 16), (g + 8, 4q + 16);
//   b: (k 4q, column g), (4q + 16, g);  c as above.
LORRY_DEVICE void mma_s8(Int4& c, const Word4& a, uint32_t b0, uint32_t b1) {
#ifdef __CUDACC__
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+r"(c.v[0]), "+r"(c.v[1]), "+r"(c.v[2]), "+r"(c.v[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
#else
  multiply_words(c, a, b0, b1, [](int sum, uint32_t left, uint32_t right) {
    for (int byte = 0; byte < 4; ++byte) {
      sum += static_cast<int8_t>(left >> (8 * byte)) * static_cast<int8_t>(right >> (8 * byte));
    }
    return sum;
  });
#endif
}

}  // namespace lorry::cuda
