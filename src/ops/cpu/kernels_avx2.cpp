// The kernels for AVX2 and FMA. Compiled with -mavx2: nothing but kernels may be included here,
// or the linker may keep this file's copy of some inline function for everyone.
#if defined(__x86_64__) && !defined(LORRY_ONLY_SCALAR)
// clang-format off
#include "ops/cpu/kernels.h"
#include "ops/cpu/vector_avx2.h"
#include "ops/cpu/vector_common.h"
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

const Kernels& avx2_kernels() {
  static constexpr Kernels kTable = table({spin_fma, kSpinFmaFlops, nullptr, 0}, true);
  return kTable;
}

}  // namespace lorry::cpu
#endif
