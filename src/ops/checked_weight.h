// What CheckedOps asks of matrices, quantised weights and segments; aborts where it does not hold.
#pragma once
#include "ops/ops.h"

namespace lorry {

// A matrix of this type and shape with memory and rows that do not overlap.
void check_matrix(const char* name, const Tensor& t, Dtype dtype, int64_t rows, int64_t cols);
void check_format(const WeightFormat& format);
// Its format, and its order: a permutation for each group.
void check_weight(const Weight& w);
// Where Ops::pack puts n rows.
void check_place(const Weight& w, int64_t group, int64_t first, int64_t n, bool interleaved);
// Requires: w is not plain.
void check_rows(const Weight& w, const QuantRows& rows);
void check_rows(const Weight& w, const PackedRows& rows);
// In order, within `rows` rows, of adapters of the plan.
void check_segments(std::span<const LoraSegment> segments, const LoraPlan& plan, int64_t rows);

}  // namespace lorry
