// Integers of 4 or 8 bits out of the 32-bit words that quantised checkpoints keep them in. The
// first integer of a word is in its lowest bits. Values are taken as they are stored, one in each
// byte of dst. All tensors are dense and on the CPU; any thread.
#pragma once
#include <array>

#include "lorry/tensor.h"

namespace lorry {

constexpr int64_t packed_words(int64_t values, int bits) { return (values * bits + 31) / 32; }

// dst u8 [R, C] from i32 [R, packed_words(C)].
void unpack_rows(const Tensor& dst, const Tensor& words, int bits);

// dst u8 [R, C] from i32 [packed_words(R), C]: word w of column c holds the rows from w * 32 /
// bits.
void unpack_columns(const Tensor& dst, const Tensor& words, int bits);

// dst u8 [C, R], the transpose of what unpack_columns gives. Requires: the words are full.
void unpack_columns_transposed(const Tensor& dst, const Tensor& words, int bits);

// dst u8 [C, R] from i32 [R, packed_words(C)], rows packed as for unpack_rows but for the order:
// integer i of a word is column order[i] of its columns. Requires: the words are full.
using WordOrder = std::array<uint8_t, 8>;
void unpack_rows_transposed(const Tensor& dst, const Tensor& words, int bits,
                            const WordOrder& order);

}  // namespace lorry
