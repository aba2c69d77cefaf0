// One row of a linear into its row block, and back.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "lorry/tensor.h"
#include "ops/cuda/layout.h"

namespace lorry::cuda {

// values [in] <- row r of src (f32, f16, bf16), inputs order[0], order[1], ... or as they are.
void read_row(std::vector<float>& values, const Tensor& src, int64_t r,
              std::span<const int32_t> order);

// Element `at` of an array of f32, f16 or bf16.
void store(std::byte* to, Dtype dtype, int64_t at, float value);

// As they were quantised elsewhere: q [in], scale and zero [scales]; zero null: none is stored.
struct QuantRow {
  const uint8_t* q;
  const float* scale;
  const uint8_t* zero;
};
void put_quantised(const WeightPlan& plan, std::byte* block, int row, const QuantRow& from);
// As they are in a row of a block of another plan, from its input `input` on: a scale begins there.
void take_quantised(const WeightPlan& plan, std::byte* block, int row, const WeightPlan& whole,
                    const std::byte* from, int from_row, int32_t input);
// Rounded to what the plan stores.
void put_row(const WeightPlan& plan, std::byte* block, int row, const std::vector<float>& values);
// All of rows [first, 16) is 0.
void clear_rows(const WeightPlan& plan, std::byte* block, int first);
// As linear multiplies by it.
float stored_value(const WeightPlan& plan, const std::byte* block, int row, int32_t k);

}  // namespace lorry::cuda
