// How the matrices of an adapter get from a file into the memory of an Adapter. Any thread.
#pragma once
#include <cstddef>
#include <string>
#include <vector>

#include "adapters/lora_map.h"
#include "lorry/tensor.h"
#include "ops/ops.h"

namespace lorry {

// Places in an adapter's memory are multiples of this.
constexpr size_t kPackAlign = 64;
inline size_t pack_aligned(size_t bytes) {
  return (bytes + kPackAlign - 1) / kPackAlign * kPackAlign;
}

// Piece p of its tensor as a matrix with dense rows, of the tensor's type: a view, or a copy in
// `scratch`.
Tensor dense_piece(const LoraPiece& p, const Tensor& source, std::vector<std::byte>& scratch);

// Rows order[0], order[1], ... of a matrix, in `scratch`.
Tensor rows_in_order(const Tensor& t, const std::vector<int32_t>& order,
                     std::vector<std::byte>& scratch);

size_t packed_size(const LoraPiece& p, const Ops& ops);
// Packs what dense_piece gave. `to` has packed_size bytes.
void pack_piece(std::byte* to, LoraPiece::Form form, const Tensor& dense, const Ops& ops);

// y f32 <- t rounded to act (a vector's are not: norms stay f32).
void round_piece(const Tensor& y, const Tensor& t, LoraPiece::Form form, Dtype act);

}  // namespace lorry
