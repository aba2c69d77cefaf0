#include "ops/medusa.h"

namespace lorry {

namespace {

size_t aligned(int64_t bytes) { return (static_cast<size_t>(bytes) + 63) / 64 * 64; }

Weight at(Weight w, const std::byte* data) {
  w.data = const_cast<std::byte*>(data);
  return w;
}

}  // namespace

MedusaLayout::MedusaLayout(const Ops& ops, const MedusaShape& shape)
    : shape_(shape), matrix_(ops.weight_layout(1, shape.dim, shape.dim)) {
  matrix_bytes_ = aligned(matrix_.group_bytes);
  block_bytes_ = matrix_bytes_ + aligned(shape.dim * int64_t{sizeof(float)});
  head_bytes_ = static_cast<size_t>(shape.blocks) * block_bytes_;
  if (!shape.own_output) return;
  output_ = ops.weight_layout(1, shape.vocab, shape.dim);
  head_bytes_ += aligned(output_.group_bytes);
}

size_t MedusaLayout::bytes() const { return static_cast<size_t>(shape_.heads) * head_bytes_; }

size_t MedusaLayout::matrix(int32_t head, int32_t block) const {
  return static_cast<size_t>(head) * head_bytes_ + static_cast<size_t>(block) * block_bytes_;
}

size_t MedusaLayout::bias(int32_t head, int32_t block) const {
  return matrix(head, block) + matrix_bytes_;
}

size_t MedusaLayout::output(int32_t head) const { return matrix(head, shape_.blocks); }

Weight MedusaLayout::matrix_of(const std::byte* data, int32_t head, int32_t block) const {
  return at(matrix_, data + matrix(head, block));
}

Weight MedusaLayout::output_of(const std::byte* data, int32_t head) const {
  return at(output_, data + output(head));
}

}  // namespace lorry
