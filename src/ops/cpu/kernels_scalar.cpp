// The kernels in plain C++: any processor, and the reference for the other instruction sets.
#include "ops/cpu/kernels.h"
#include "ops/cpu/vector_scalar.h"
// The order matters: a vector type, what is built on it, the table.
#include "ops/cpu/vector_common.h"
// clang-format off
#include "ops/cpu/matmul.h"
#include "ops/cpu/attend.h"
#include "ops/cpu/rows.h"
#include "ops/cpu/quant.h"
#include "ops/cpu/quant_rows.h"
#include "ops/cpu/quant_fit.h"
#include "ops/cpu/quant_wide.h"
#include "ops/cpu/table.h"
// clang-format on

namespace lorry::cpu {

const Kernels& scalar_kernels() {
  static constexpr Kernels kTable = table({spin_fma, kSpinFmaFlops, nullptr, 0}, false);
  return kTable;
}

}  // namespace lorry::cpu
