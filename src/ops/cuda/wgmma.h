// Hopper's products by a warpgroup, and asynchronous copies into shared memory; on simt/simt.h the
// same, at once.
//
// A tile of x in shared memory: rows of 64 numbers (128 bytes), whose parts of 16 bytes are
// swizzled within each 8 rows; the tile starts at a multiple of 1024 bytes.
#pragma once
#include "ops/cuda/layout.h"
#include "ops/cuda/mma.h"

namespace lorry::cuda {

constexpr size_t kTileAlign = 1024;

// Where part `part` (16 bytes) of row `row` lies in a tile.
constexpr int place_in_tile(int row, int part) {
  return row * kTileRowBytes + ((part ^ (row & 7)) << 4);
}

LORRY_DEVICE unsigned char* align_tile(unsigned char* p) {
  const auto at = reinterpret_cast<uintptr_t>(p);
  return p + (kTileAlign - at % kTileAlign) % kTileAlign;
}

// All of the block's shared memory, for kernels with tiles at its start.
#ifdef __CUDACC__
LORRY_DEVICE unsigned char* shared_tiles() {
  extern __shared__ __align__(kTileAlign) unsigned char lorry_tiles[];
  return lorry_tiles;
}
#else
LORRY_DEVICE unsigned char* shared_tiles() { return align_tile(shared_bytes()); }
#endif

#if defined(__CUDACC__) && defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define LORRY_WGMMA_CODE 1
#endif

#ifdef __CUDACC__

// The tile as wgmma's b operand, at `bytes` (of 64 of a row) from its start.
using TileOperand = uint64_t;
LORRY_DEVICE TileOperand tile_operand(const unsigned char* tile, int bytes) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
  constexpr uint64_t kEightRows = uint64_t{kTileAlign >> 4} << 32;
  const uint64_t address = (shared_address(tile) + static_cast<uint32_t>(bytes)) & 0x3ffffU;
  return kSwizzle128 | kEightRows | uint64_t{1} << 16 | address >> 4;
}

#else

struct TileOperand {
  const unsigned char* tile;
  int bytes;
};
LORRY_DEVICE TileOperand tile_operand(const unsigned char* tile, int bytes) {
  return {tile, bytes};
}

#endif

#ifdef LORRY_WGMMA_CODE

// What copies and threads have written to shared memory before the next barrier may be read by
// wgmma.
LORRY_DEVICE void publish_to_wgmma() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
// Registers of operands that follow may be read and written by wgmma.
LORRY_DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
LORRY_DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kLeft>
LORRY_DEVICE void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kLeft) : "memory");
}

#define LORRY_OUT8(i)                                                                 \
  "+f"(c[i]), "+f"(c[(i) + 1]), "+f"(c[(i) + 2]), "+f"(c[(i) + 3]), "+f"(c[(i) + 4]), \
      "+f"(c[(i) + 5]), "+f"(c[(i) + 6]), "+f"(c[(i) + 7])
#define LORRY_OUT16(i) LORRY_OUT8(i), LORRY_OUT8((i) + 8)
#define LORRY_OUT32(i) LORRY_OUT16(i), LORRY_OUT16((i) + 16)
#define LORRY_OUT64(i) LORRY_OUT32(i), LORRY_OUT32((i) + 32)
#define LORRY_P32 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define LORRY_P64 LORRY_P32 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define LORRY_P128                                                               \
  LORRY_P64                                                                      \
  ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50" \
  ",%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define LORRY_P176                                                               \
  LORRY_P128                                                                     \
  ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82" \
  ",%83,%84,%85,%86,%87"
#define LORRY_P192 LORRY_P176 ",%88,%89,%90,%91,%92,%93,%94,%95"
#define LORRY_P224 \
  LORRY_P192       \
  ",%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111"
#define LORRY_P240 LORRY_P224 ",%112,%113,%114,%115,%116,%117,%118,%119"
#define LORRY_P256 LORRY_P240 ",%120,%121,%122,%123,%124,%125,%126,%127"
#define LORRY_WGMMA_OF(type, n, outputs, a0, a1, a2, a3, b, keep, ...)                            \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #keep                                         \
               ", 0;\nwgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type " {" outputs \
               "}, {%" #a0 ", %" #a1 ", %" #a2 ", %" #a3 "}, %" #b ", p, 1, 1, 0;\n}\n"           \
               : __VA_ARGS__                                                                      \
               : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "l"(x), "r"(static_cast<int>(add)))
#define LORRY_WGMMA(...)                 \
  if constexpr (kIsBf16<T>) {            \
    LORRY_WGMMA_OF("bf16", __VA_ARGS__); \
  } else {                               \
    LORRY_WGMMA_OF("f16", __VA_ARGS__);  \
  }

// c [64, kN] = a x^T, or added to c: of warp w of the warpgroup rows 16 w ... + 15 as mma has them,
// c[4 j ...] its columns 8 j ... + 7. Ends with wgmma_wait.
template <class T, int kN>
LORRY_DEVICE void wgmma(float (&c)[kN / 2], const Word4& a, TileOperand x, bool add) {
  if constexpr (kN == 32) {
    LORRY_WGMMA(32, LORRY_P32, 16, 17, 18, 19, 20, 21, LORRY_OUT16(0));
  } else if constexpr (kN == 64) {
    LORRY_WGMMA(64, LORRY_P64, 32, 33, 34, 35, 36, 37, LORRY_OUT32(0));
  } else if constexpr (kN == 128) {
    LORRY_WGMMA(128, LORRY_P128, 64, 65, 66, 67, 68, 69, LORRY_OUT64(0));
  } else if constexpr (kN == 176) {
    LORRY_WGMMA(176, LORRY_P176, 88, 89, 90, 91, 92, 93, LORRY_OUT64(0), LORRY_OUT16(64),
                LORRY_OUT8(80));
  } else if constexpr (kN == 192) {
    LORRY_WGMMA(192, LORRY_P192, 96, 97, 98, 99, 100, 101, LORRY_OUT64(0), LORRY_OUT32(64));
  } else if constexpr (kN == 224) {
    LORRY_WGMMA(224, LORRY_P224, 112, 113, 114, 115, 116, 117, LORRY_OUT64(0), LORRY_OUT32(64),
                LORRY_OUT16(96));
  } else if constexpr (kN == 240) {
    LORRY_WGMMA(240, LORRY_P240, 120, 121, 122, 123, 124, 125, LORRY_OUT64(0), LORRY_OUT32(64),
                LORRY_OUT16(96), LORRY_OUT8(112));
  } else {
    static_assert(kN == 256);
    LORRY_WGMMA(256, LORRY_P256, 128, 129, 130, 131, 132, 133, LORRY_OUT64(0), LORRY_OUT64(64));
  }
}

#undef LORRY_OUT8
#undef LORRY_OUT16
#undef LORRY_OUT32
#undef LORRY_OUT64
#undef LORRY_P32
#undef LORRY_P64
#undef LORRY_P128
#undef LORRY_P176
#undef LORRY_P192
#undef LORRY_P224
#undef LORRY_P240
#undef LORRY_P256
#undef LORRY_WGMMA
#undef LORRY_WGMMA_OF

#else

LORRY_DEVICE void publish_to_wgmma() {}
LORRY_DEVICE void wgmma_fence() {}
LORRY_DEVICE void wgmma_commit() {}
// The warp's lanes wait for each other, too.
template <int>
LORRY_DEVICE void wgmma_wait() {
  sync_warp();
}

#ifdef __CUDACC__
// Not for this device; the host does not start kernels that would come here.
template <class T, int kN>
LORRY_DEVICE void wgmma(float (&)[kN / 2], const Word4&, TileOperand, bool) {
  __trap();
}
#else
template <class T, int kN>
LORRY_DEVICE void wgmma(float (&c)[kN / 2], const Word4& a, TileOperand x, bool add) {
  const simt::Slot* all = simt::exchange({{a.x, a.y, a.z, a.w}});
  const int g = simt::lane() / 4;
  for (int n = 0; n < kN / 2; ++n) {
    const int i = n % 4;
    const int column = n / 4 * 8 + simt::lane() % 4 * 2 + i % 2;
    float sum = add ? c[n] : 0.0F;
    for (int pair = 0; pair < 8; ++pair) {
      const uint32_t left = all[4 * g + pair % 4].word[i / 2 + pair / 4 * 2];
      const int byte = x.bytes + 4 * pair;
      uint32_t right = 0;
      memcpy(&right, x.tile + place_in_tile(column, byte / 16) + byte % 16, 4);
      sum = fmaf(T::low(left), T::low(right), sum);
      sum = fmaf(T::high(left), T::high(right), sum);
    }
    c[n] = sum;
  }
}
#endif
#endif

}  // namespace lorry::cuda
