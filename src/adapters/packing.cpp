#include "adapters/packing.h"

#include <cstring>

#include "base/error.h"
#include "base/float16.h"
#include "weights/slice.h"

namespace lorry {

namespace {

// Copies a strided piece to a dense matrix of the same type in `scratch`.
template <class T>
Tensor gather(const LoraPiece& p, const Tensor& source, std::vector<std::byte>& scratch) {
  scratch.resize(static_cast<size_t>(p.rows * p.cols) * sizeof(T));
  T* out = reinterpret_cast<T*>(scratch.data());
  const T* from = reinterpret_cast<const T*>(source.data) + p.offset;
  const std::vector<Range> all{{0, p.rows}};
  T* to = out;
  for (const Range& r : p.row_ranges.empty() ? all : p.row_ranges) {
    for (int64_t i = r.first; i < r.first + r.count; ++i) {
      for (int64_t j = 0; j < p.cols; ++j) *to++ = from[i * p.row_stride + j * p.col_stride];
    }
  }
  return view(out, source.dtype, {p.rows, p.cols});
}

}  // namespace

Tensor dense_piece(const LoraPiece& p, const Tensor& source, std::vector<std::byte>& scratch) {
  if (p.col_stride == 1 && p.row_ranges.empty()) {
    Tensor t = view(source.data + p.offset * size_of(source.dtype), source.dtype, {p.rows, p.cols});
    t.pitch = p.row_stride;
    return t;
  }
  return size_of(source.dtype) == 4 ? gather<uint32_t>(p, source, scratch)
                                    : gather<uint16_t>(p, source, scratch);
}

Tensor rows_in_order(const Tensor& t, const std::vector<int32_t>& order,
                     std::vector<std::byte>& scratch) {
  const auto row_bytes = static_cast<size_t>(t.cols() * size_of(t.dtype));
  scratch.resize(order.size() * row_bytes);
  for (size_t i = 0; i < order.size(); ++i) {
    std::memcpy(scratch.data() + i * row_bytes, rows(t, order[i], 1).data, row_bytes);
  }
  return view(scratch.data(), t.dtype, {static_cast<int64_t>(order.size()), t.cols()});
}

size_t packed_size(const LoraPiece& p, const Ops& ops) {
  switch (p.form) {
    case LoraPiece::Form::lora_a:
      return ops.lora_a_bytes(p.rows, p.cols);
    case LoraPiece::Form::lora_b:
      return ops.lora_b_bytes(p.rows, p.cols);
    case LoraPiece::Form::matrix:
      return static_cast<size_t>(ops.weight_layout(1, p.rows, p.cols).group_bytes);
    case LoraPiece::Form::table:
      return static_cast<size_t>(p.rows * p.cols * size_of(ops.act()));
    case LoraPiece::Form::vector:
      break;
  }
  return static_cast<size_t>(p.rows * p.cols * size_of(Dtype::f32));
}

void pack_piece(std::byte* to, LoraPiece::Form form, const Tensor& dense, const Ops& ops) {
  switch (form) {
    case LoraPiece::Form::lora_a:
      return ops.pack_lora_a(to, dense);
    case LoraPiece::Form::lora_b:
      return ops.pack_lora_b(to, dense);
    case LoraPiece::Form::matrix:
      return ops.pack_matrix(to, dense);
    case LoraPiece::Form::table:
      return copy(view(to, ops.act(), dense.shape), dense);
    case LoraPiece::Form::vector:
      return copy(view(to, Dtype::f32, dense.shape), dense);
  }
}

void round_piece(const Tensor& y, const Tensor& t, LoraPiece::Form form, Dtype act) {
  copy(y, t);
  if (act == Dtype::f32 || form == LoraPiece::Form::vector) return;
  for (int64_t r = 0; r < y.rows(); ++r) {
    float* x = y.row<float>(r);
    for (int64_t c = 0; c < y.cols(); ++c) {
      x[c] = act == Dtype::bf16 ? to_float(to_bf16(x[c])) : to_float(to_f16(x[c]));
    }
  }
}

}  // namespace lorry
