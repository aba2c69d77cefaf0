// Copies between matrices of any pitch, also from one float type to another: how fused tensors
// are taken apart and how a rank gets its share of a weight. Ranges are views: rows() and
// columns() of lorry/tensor.h; a tensor [E, R, C] counts as a matrix [E*R, C].
#pragma once
#include "lorry/tensor.h"

namespace lorry {

// dst[r, c] = src[r, c]. Both on the CPU, with the same rows() and cols(); f32, f16 or bf16 are
// converted (to nearest even) when the types differ, other types must agree.
void copy(const Tensor& dst, const Tensor& src);

// dst[c, r] = src[r, c]: dst has src.cols() rows of src.rows() columns.
void copy_transposed(const Tensor& dst, const Tensor& src);

}  // namespace lorry
