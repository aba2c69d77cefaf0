// Where the elements of packed weights, of LoRA pairs and of cache blocks lie in the memory of the
// CUDA backend: for the host, which packs, and for the kernels. Plain index arithmetic.
//
// A linear [out, in] is row blocks of 16 outputs; a row block is its values, by chunks of 32
// inputs, then its scales [scales][16] (f16; f32 where an output has only one) and its zero points
// [scales][16] (u8, where they are stored). Values of a chunk lie as the lanes of a warp load them
// for mma: lane 4 g + q has rows g and g + 8, and inputs 8 q ... 8 q + 7, which are also 16 bytes
// of a row of x. So the inputs that a lane multiplies in one mma (its "k 2q, 2q + 1, 2q + 8, 2q +
// 9") are neighbours here; both operands agree, and a sum does not care.
#pragma once
#include <stdint.h>

namespace lorry::cuda {

constexpr int kRowBlock = 16;  // outputs of a row block
constexpr int kChunk = 32;     // inputs of a chunk
constexpr int kChunkValues = kRowBlock * kChunk;

// bf16, f16, f32, fp8: place of (row, k) of a chunk. Tile t, the first or second mma, has inputs
// 8 q + 4 t ... + 3 of each q. [tile][lane][8]; fp8: [lane][tile][8], in another order within.
constexpr int place_of(int row, int k) {
  const int lane = row % 8 * 4 + k / 8;
  const int tile = k % 8 / 4;
  return tile * 256 + lane * 8 + (k % 4 / 2 * 2 + row / 8) * 2 + k % 2;
}
constexpr int place_of_fp8(int row, int k) {
  const int lane = row % 8 * 4 + k / 8;
  return lane * 16 + k % 8 / 4 * 8 + (k % 4 / 2 * 2 + row / 8) * 2 + k % 2;
}
// int8 [lane][4 words]; word: tile, then row / 8; byte: k % 4.
constexpr int place_of_s8(int row, int k) {
  const int lane = row % 8 * 4 + k / 8;
  return lane * 16 + (k % 8 / 4 * 2 + row / 8) * 4 + k % 4;
}
// int4: bytes [lane][8]; the low nibble is of row g, the high one of row g + 8.
constexpr int byte_of_s4(int row, int k) {
  const int lane = row % 8 * 4 + k / 8;
  return lane * 8 + k % 8;
}

// Rows of x as s8. A lane's inputs of two chunks are neighbours; wide: inputs of a chunk are in the
// order of the a operand.
constexpr int place_in_xq(int k, bool wide) {
  const int lane = k % 32 / 8;
  return wide ? k / 32 * 32 + k % 8 / 4 * 16 + lane * 4 + k % 4
              : k / 64 * 64 + lane * 16 + k % 64 / 32 * 8 + k % 8;
}

enum class Values : uint8_t { f32, bf16, f16, fp8, s8, s4 };
constexpr bool is_16_bits(Values v) { return v == Values::bf16 || v == Values::f16; }

constexpr int64_t chunk_bytes(Values v) {
  return v == Values::f32  ? kChunkValues * 4
         : is_16_bits(v)   ? kChunkValues * 2
         : v == Values::s4 ? kChunkValues / 2
                           : kChunkValues;
}

// A linear's packed form; all row blocks are alike.
struct WeightPlan {
  Values values = Values::bf16;
  bool half = false;   // scales are f16
  bool zeros = false;  // zero points are stored
  int32_t in = 0;
  int32_t group = 0;   // inputs of a scale; 0: no scales
  int32_t scales = 0;  // of an output

  constexpr int64_t chunks() const { return (in + kChunk - 1) / kChunk; }
  constexpr int64_t scales_offset() const { return chunks() * chunk_bytes(values); }
  constexpr int64_t scale_bytes() const { return half ? 2 : 4; }
  constexpr int64_t zeros_offset() const {
    return scales_offset() + int64_t{scales} * kRowBlock * scale_bytes();
  }
  constexpr int64_t block_bytes() const {
    return zeros_offset() + (zeros ? int64_t{scales} * kRowBlock : 0);
  }
};

// Gate and up of a linear that ends with glu lie interleaved by 64 outputs: the row block of the
// nth of gate; that of up is kGluBlocks further on.
constexpr int kGluBlocks = 64 / kRowBlock;
constexpr int64_t gate_block(int64_t n) { return n / kGluBlocks * 2 * kGluBlocks + n % kGluBlocks; }

// x of linear_wide: by tiles of kTileInputs inputs, [tile][row][128 bytes], the inputs of each
// chunk in the order of the a operand and the row's parts as wgmma.h has them in a tile; inputs
// rounded up to kArranged with zeros, rows to 8 with anything. Then a chunk of weights that are
// zero.
constexpr int64_t kArranged = 8 * kChunk;
constexpr int kTileInputs = 64;
constexpr int kTileRowBytes = 2 * kTileInputs;
constexpr int kZeroBytes = 2 * kChunkValues;
constexpr int64_t arranged_rows(int64_t rows) { return (rows + 7) / 8 * 8; }
constexpr int64_t arranged_inputs(int64_t in) {
  return (in + kArranged - 1) / kArranged * kArranged;
}
constexpr int64_t zeros_in_arranged(int64_t rows, int64_t in) {
  return arranged_rows(rows) * arranged_inputs(in) * 2;
}
constexpr int64_t arranged_bytes(int64_t rows, int64_t in) {
  return zeros_in_arranged(rows, in) + kZeroBytes;
}

// A of a pair [rank, in]: blocks of 8 ranks, by chunks, [tile][lane][4]: half of a row block.
constexpr int kRankBlock = 8;
constexpr int place_in_a(int rank, int k) {
  return k % 8 / 4 * 128 + (rank * 4 + k / 8) * 4 + k % 4;
}
// B [out, rank]: panels of 64 outputs, [rank][64].
constexpr int kPanelB = 64;

// A block of 16 tokens of one head. K [16][d]; V in bf16 and f16 [8][d][2], else [16][d]; 16 bits:
// d rounded up to 8, the rest zeros; int8: behind the values the f32 scales of the 16 tokens.
constexpr int kTokens = 16;
constexpr int64_t head_width(int64_t d) { return (d + 7) / 8 * 8; }
constexpr int64_t place_in_v(int64_t width, int64_t token, int64_t i) {
  return token / 2 * 2 * width + 2 * i + token % 2;
}

}  // namespace lorry::cuda
