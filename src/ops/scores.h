// Rows of scores on the processor, where they are chosen from, whatever the model runs on. Results
// depend on neither the instruction set nor the thread.
#pragma once
#include <cstdint>
#include <span>

namespace lorry {

// The index of the largest value, the lowest on ties; -1 where one is NaN or +inf, or none is above
// -inf.
int32_t arg_max(std::span<const float> x);

// The logarithm of the sum of e^x, within 1e-6 and a rounding of the largest value to f32. NaN
// where a value is.
double log_sum_exp(std::span<const float> x);

}  // namespace lorry
