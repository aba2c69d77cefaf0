// Medusa heads in memory, as an adapter packs them and a model runs them. Head i guesses the token
// i + 2 places ahead of a row, i from 0: x is the row's final normed hidden state [D]; `blocks`
// times x = x + silu(W x + b); the logits are O x, O a matrix [V, D] of the head's own or the
// model's output layer. Plain data.
#pragma once
#include <cstddef>
#include <cstdint>

#include "ops/ops.h"

namespace lorry {

// Where the parts are, in bytes from the start; every part is 64-byte aligned.
class MedusaLayout {
 public:
  MedusaLayout(const Ops& ops, const MedusaShape& shape);

  size_t bytes() const;
  // W [D, D] packed by Ops::pack_matrix, b [D] f32, O [V, D] packed (with own_output).
  size_t matrix(int32_t head, int32_t block) const;
  size_t bias(int32_t head, int32_t block) const;
  size_t output(int32_t head) const;
  // W or O as Ops::linear takes it. Requires: `data` holds heads in this layout.
  Weight matrix_of(const std::byte* data, int32_t head, int32_t block) const;
  Weight output_of(const std::byte* data, int32_t head) const;

 private:
  MedusaShape shape_;
  Weight matrix_, output_;
  size_t matrix_bytes_ = 0, block_bytes_ = 0, head_bytes_ = 0;
};

}  // namespace lorry
