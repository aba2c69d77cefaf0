// Rounding floats to quantised values, for whatever layout they go to.
#pragma once
#include <cstdint>

#include "ops/cpu/kernels.h"

namespace lorry::cpu {

// q [n, padded to 16] <- w [n]; returns its scale: NaN where a value is not finite. Requires:
// denormals are flushed (flush_denormals.h).
float fit(uint8_t* q, const Kernels& kernels, const QuantLayout& l, const float* w, int64_t n);

}  // namespace lorry::cpu
