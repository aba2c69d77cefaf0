// Rows of x times row blocks of a packed weight on the tensor cores: what linears, the weights that
// adapters put in their place and the shrink of LoRA are made of.
//
// Bits: inputs are cut into kSlices slices, each summed by mma in order of k from zero; the slices'
// sums are added in order. Decoding (a warp for each slice) and prefill (one warp, slice after
// slice) do exactly that, and a row or column of mma does not see the others. So an output has one
// value, however many rows are multiplied and whatever kernel does it.
#pragma once
#include "ops/cuda/chunk_ring.h"
#include "ops/cuda/kernels.h"
#include "ops/cuda/mma.h"

namespace lorry::cuda {

constexpr int kSlices = 2;
constexpr int kSliceChunks = 8;  // a slice begins at a multiple of so many chunks

// The first chunk of slice s; of slice kSlices: the end.
constexpr int slice_begin(int chunks, int s) {
  if (s == kSlices) return chunks;
  return static_cast<int>(static_cast<int64_t>(chunks) * s / kSlices) / kSliceChunks * kSliceChunks;
}

// x of kN x 8 rows as the b operand: lane 4 g + q has row 8 n + g, inputs 8 q ... of a chunk.
template <int kN>
struct XRows {
  static constexpr int kBytes = kN * 512;  // of a chunk, in shared memory
  const uint16_t* row[kN];                 // null: beyond the last, zeros
  const uint16_t* part[kN];                // a lane's of it, or of the first row
  int in;
  bool wide;  // 16 bytes at a time

  LORRY_DEVICE XRows(const void* x, int64_t pitch, int first, int end, int in_) : in(in_) {
    const auto* base = static_cast<const uint16_t*>(x);
    LORRY_UNROLL
    for (int n = 0; n < kN; ++n) {
      const int r = first + 8 * n + lane_index() / 4;
      row[n] = r < end ? base + r * pitch : nullptr;
      part[n] = base + (r < end ? r : first) * pitch + lane_index() % 4 * 8;
    }
    wide = reinterpret_cast<uintptr_t>(base) % 16 == 0 && pitch % 8 == 0;
  }

  LORRY_DEVICE Word4 load(int n, int chunk) const {
    const int k = chunk * kChunk + lane_index() % 4 * 8;
    if (row[n] == nullptr || k >= in) return {0, 0, 0, 0};
    const uint16_t* x = row[n] + k;
    if (wide && k + 8 <= in) return *reinterpret_cast<const Word4*>(x);
    uint32_t v[8];
    LORRY_UNROLL
    for (int i = 0; i < 8; ++i) v[i] = k + i < in ? x[i] : 0U;
    return {v[0] | v[1] << 16, v[2] | v[3] << 16, v[4] | v[5] << 16, v[6] | v[7] << 16};
  }

  // The same in one load, if all of the chunk and of those before is there; not zeros, but anything
  // beyond the last row.
  LORRY_DEVICE bool is_whole(int chunk) const { return wide && (chunk + 1) * kChunk <= in; }
  LORRY_DEVICE Word4 load_whole(int n, int chunk) const {
    return *reinterpret_cast<const Word4*>(part[n] + chunk * kChunk);
  }

  LORRY_DEVICE void copy(unsigned char* to, int chunk) const {
    const int k = chunk * kChunk + lane_index() % 4 * 8;
    LORRY_UNROLL
    for (int n = 0; n < kN; ++n) {
      unsigned char* at = to + (n * 32 + lane_index()) * 16;
      if (row[n] != nullptr && wide && k + 8 <= in) {
        copy_async_near(at, row[n] + k);
      } else {
        *reinterpret_cast<Word4*>(at) = load(n, chunk);
      }
    }
  }
};

// A lane's part of a chunk of XRows in shared memory.
template <int kN>
LORRY_DEVICE Word4 x_in(const unsigned char* chunk, int n) {
  return *(reinterpret_cast<const Word4*>(chunk) + n * 32 + lane_index());
}

// Both a operands of a chunk.
struct Tiles {
  Word4 t[2];
};

// load: a lane's part of a chunk. In two steps, of chunks in the device's memory: fetch and widen.
// Act: of x.
template <class T>
struct LoadPlain {
  using Act = T;
  static constexpr int kBytes = kChunkValues * 2;
  using Raw = Tiles;
  LORRY_DEVICE static Raw fetch(const unsigned char* chunk) {
    const auto* words = reinterpret_cast<const Word4*>(chunk) + lane_index();
    return {{load_once(words), load_once(words + 32)}};
  }
  LORRY_DEVICE static const Tiles& widen(const Raw& raw) { return raw; }
  LORRY_DEVICE static Tiles load(const unsigned char* chunk) {
    const auto* words = reinterpret_cast<const Word4*>(chunk) + lane_index();
    return {{words[0], words[32]}};
  }
};

template <class T>
struct LoadFp8 {
  using Act = T;
  static constexpr int kBytes = kChunkValues;
  LORRY_DEVICE static uint32_t widen_pair(uint32_t x) {
    return T::pack(from_e4m3(x & 0xffU), from_e4m3(x >> 8 & 0xffU));
  }
  LORRY_DEVICE static Word4 widen_tile(uint32_t low, uint32_t high) {
    return {widen_pair(low), widen_pair(low >> 16), widen_pair(high), widen_pair(high >> 16)};
  }
  using Raw = Word4;
  LORRY_DEVICE static Raw fetch(const unsigned char* chunk) {
    return load_once(reinterpret_cast<const Word4*>(chunk) + lane_index());
  }
  LORRY_DEVICE static Tiles widen(const Raw& w) {
    return {{widen_tile(w.x, w.y), widen_tile(w.z, w.w)}};
  }
  LORRY_DEVICE static Tiles load(const unsigned char* chunk) {
    return widen(reinterpret_cast<const Word4*>(chunk)[lane_index()]);
  }
};

// f(load): what multiplies the weights of a.
template <class F>
void with_load(const LinearArgs& a, F&& f) {
  const bool fp8 = a.plan.values == Values::fp8;
  if (a.act == Act::bf16) return fp8 ? f(LoadFp8<Bf16>{}) : f(LoadPlain<Bf16>{});
  fp8 ? f(LoadFp8<F16>{}) : f(LoadPlain<F16>{});
}

// Of output o of a row block, of plain and fp8 weights: 1 where there is none.
LORRY_DEVICE float scale_of(const WeightPlan& plan, const unsigned char* block, int o) {
  if (plan.scales == 0) return 1.0F;
  return reinterpret_cast<const float*>(block + plan.scales_offset())[o];
}

// sum[m][n] += row block m (at w + m * block_bytes) times x, chunks [begin, end).
template <class Load, int kM, int kN>
LORRY_DEVICE void multiply(Float4 (&sum)[kM][kN], const unsigned char* w, int64_t block_bytes,
                           const XRows<kN>& x, int begin, int end) {
  constexpr int kAhead = kM * kN <= 4 ? 2 : 1;  // chunks loaded together
  for (int c = begin; c < end; c += kAhead) {
    Tiles a[kAhead][kM];
    Word4 b[kAhead][kN];
    LORRY_UNROLL
    for (int i = 0; i < kAhead; ++i) {
      // Past the end the last chunk is loaded again, and not used.
      const int chunk = c + i < end ? c + i : end - 1;
      LORRY_UNROLL
      for (int m = 0; m < kM; ++m) {
        a[i][m] = Load::load(w + m * block_bytes + int64_t{chunk} * Load::kBytes);
      }
      LORRY_UNROLL
      for (int n = 0; n < kN; ++n) b[i][n] = x.load(n, chunk);
    }
    LORRY_UNROLL
    for (int i = 0; i < kAhead; ++i) {
      if (c + i >= end) break;
      LORRY_UNROLL
      for (int n = 0; n < kN; ++n) {
        LORRY_UNROLL
        for (int m = 0; m < kM; ++m) {
          mma<typename Load::Act>(sum[m][n], a[i][m].t[0], b[i][n].x, b[i][n].y);
          mma<typename Load::Act>(sum[m][n], a[i][m].t[1], b[i][n].z, b[i][n].w);
        }
      }
    }
  }
}

// Rows of a row block that its kSlices warps store at a time, a thread one value.
constexpr int kStoredRows = 32 * kSlices / kRowBlock;

// What kSlices warps multiply: kBlocks row blocks of a weight, next_block bytes apart.
template <int kBlocks>
struct RowBlocks {
  const unsigned char* w;
  int64_t next_block;
  int chunks;
};

// See ChunkRing.
struct NoTail {
  template <class... Args>
  LORRY_DEVICE void operator()(const Args&...) const {}
};

// Row blocks by kSlices warps: thread t of 32 * kSlices gets of each block the sums of output
// t % 16 for rows t / 16 + kStoredRows j, in order of the slices. shared: slices_shared bytes.
// tail: of each warp.
template <class Load, int kN, int kBlocks, class Tail = NoTail>
LORRY_DEVICE void multiply_by_slices(float (&sum)[kBlocks][8 * kN / kStoredRows], float* shared,
                                     const RowBlocks<kBlocks>& blocks, const XRows<kN>& x,
                                     Tail&& tail = {}) {
  const int slice = warp_index();
  constexpr int kSums = 8 * kN * kRowBlock;  // of a block and slice
  using Chunks = ChunkRing<Load, XRows<kN>, kBlocks>;
  auto* ring = reinterpret_cast<unsigned char*>(shared + kSlices * kBlocks * kSums);
  Float4 part[kBlocks][kN] = {};
  const Chunks stream{ring + slice * Chunks::kBytes, blocks.w, blocks.next_block, x};
  stream.each(
      slice_begin(blocks.chunks, slice), slice_begin(blocks.chunks, slice + 1),
      [&](const unsigned char* weights, const unsigned char* values) {
        Tiles a[kBlocks];
        LORRY_UNROLL
        for (int b = 0; b < kBlocks; ++b) a[b] = Load::load(weights + b * Load::kBytes);
        LORRY_UNROLL
        for (int n = 0; n < kN; ++n) {
          const Word4 v = x_in<kN>(values, n);
          LORRY_UNROLL
          for (int b = 0; b < kBlocks; ++b) {
            mma<typename Load::Act>(part[b][n], a[b].t[0], v.x, v.y);
            mma<typename Load::Act>(part[b][n], a[b].t[1], v.z, v.w);
          }
        }
      },
      tail);
  const int g = lane_index() / 4;
  const int q = lane_index() % 4;
  sync_threads();  // what was in `shared` has been read
  LORRY_UNROLL
  for (int b = 0; b < kBlocks; ++b) {
    LORRY_UNROLL
    for (int n = 0; n < kN; ++n) {
      LORRY_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int row = 8 * n + 2 * q + i % 2;
        shared[(slice * kBlocks + b) * kSums + row * kRowBlock + g + i / 2 * 8] = part[b][n].v[i];
      }
    }
  }
  sync_threads();
  LORRY_UNROLL
  for (int b = 0; b < kBlocks; ++b) {
    LORRY_UNROLL
    for (int j = 0; j < 8 * kN / kStoredRows; ++j) {
      const int at = b * kSums + static_cast<int>(threadIdx.x) + kStoredRows * kRowBlock * j;
      float total = shared[at];
      for (int s = 1; s < kSlices; ++s) total += shared[s * kBlocks * kSums + at];
      sum[b][j] = total;
    }
  }
}
template <class Load, int kN, int kBlocks>
constexpr size_t slices_shared() {
  constexpr size_t kBytes = sizeof(float) * kSlices * kBlocks * kRowBlock * 8 * kN +
                            size_t{kSlices} * ChunkRing<Load, XRows<kN>, kBlocks>::kBytes;
  static_assert(kBytes <= size_t{99} << 10);
  return kBytes;
}

// 16 outputs of up to 8 rows of T: the inputs are cut into kParts parts, whose sums are added in
// order. Where part p begins, in chunks:
constexpr int kParts = 16;
constexpr int part_begin(int chunks, int p) {
  return static_cast<int>(int64_t{chunks} * p / kParts);
}

// Warp `warp` of kWarps sums parts warp, warp + kWarps ...: put(p, what a lane has of the sum).
// tiles(chunk): a operands of a chunk, of which kAhead are loaded together. wait(): all threads
// call it before the first of x is read.
template <class T, int kWarps, int kAhead, class LoadTiles, class Wait, class Put>
LORRY_DEVICE void sum_parts(int warp, LoadTiles&& tiles, const XRows<1>& x, int chunks, Wait&& wait,
                            Put&& put) {
  const auto begin = [&](int p) { return part_begin(chunks, p); };
  Tiles left[kAhead];
  const auto load = [&](int c, int last) {
    LORRY_UNROLL
    for (int i = 0; i < kAhead; ++i) {
      if (c + i < last) left[i] = tiles(c + i);
    }
  };
  const auto load_part = [&](int p) {
    if (begin(p) < begin(p + 1)) load(begin(p), begin(p + 1));
  };
  const auto multiply = [](Float4& sum, const Tiles& a, const Word4& b) {
    mma<T>(sum, a.t[0], b.x, b.y);
    mma<T>(sum, a.t[1], b.z, b.w);
  };
  load_part(warp);
  wait();
  for (int p = warp;; p += kWarps) {
    Float4 sum{};
    const int last = begin(p + 1);
    for (int c = begin(p); c < last;) {
      const int end = c + kAhead < last ? c + kAhead : last;
      if (x.is_whole(end - 1)) {
        Word4 right[kAhead];
        LORRY_UNROLL
        for (int i = 0; i < kAhead; ++i) {
          right[i] = x.load_whole(0, c + i < end ? c + i : end - 1);
        }
        sync_warp();  // or the last is loaded when the first has been multiplied
        LORRY_UNROLL
        for (int i = 0; i < kAhead; ++i) {
          if (c + i < end) multiply(sum, left[i], right[i]);
        }
      } else {  // rare: one by one, which is less code
        for (int i = c; i < end; ++i) multiply(sum, tiles(i), x.load(0, i));
      }
      c = end;
      if (c < last) load(c, last);
    }
    const bool more = kWarps < kParts && p + kWarps < kParts;
    if (more) load_part(p + kWarps);
    put(p, sum);
    if (!more) break;
  }
}

// What lanes put, [kParts, 32]; of that, thread 16 row + output adds what is its own in order;
// threads from 128 on get nothing.
constexpr size_t kPartsShared = sizeof(Word4) * kParts * 32;
LORRY_DEVICE Word4 words_of(const Float4& sum) {
  return {as_bits(sum.v[0]), as_bits(sum.v[1]), as_bits(sum.v[2]), as_bits(sum.v[3])};
}
LORRY_DEVICE float add_parts(const Word4* sums) {
  const auto at = static_cast<int>(threadIdx.x);
  if (at >= 8 * kRowBlock) return 0.0F;
  const int row = at / kRowBlock;
  const int output = at % kRowBlock;
  const int lane = output % 8 * 4 + row / 2;
  const float* own = reinterpret_cast<const float*>(sums + lane) + output / 8 * 2 + row % 2;
  constexpr int kNext = 32 * sizeof(Word4) / sizeof(float);
  float total = own[0];
  for (int p = 1; p < kParts; ++p) total += own[p * kNext];
  return total;
}

}  // namespace lorry::cuda
