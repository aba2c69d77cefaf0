// The kernels for AVX-512 with BF16. Compiled with -mavx512...: nothing but kernels may be included
// here, or the linker may keep this file's copy of some inline function for everyone.
#if defined(__x86_64__) && !defined(LORRY_ONLY_SCALAR)
// clang-format off
#include "ops/cpu/kernels.h"
#include "ops/cpu/vector_avx512.h"
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
namespace {

// For processors whose vdpbf16ps takes longer than two FMA.
struct Bf16Fma : Bf16 {
  static LORRY_INLINE V16 dot(const P16& a, const P16& b, const V16& c) { return dot_fma(a, b, c); }
};

void spin_bf16(int64_t iterations, float* sink) {
  V16 c[kSpinChains];
  unroll<kSpinChains>([&](auto i) LORRY_UNROLLED { c[i] = zero(); });
  const P16 a = set1_pair(static_cast<uint32_t>(*sink));
  for (int64_t k = 0; k < iterations; ++k) {
    unroll<kSpinChains>([&](auto i) LORRY_UNROLLED { c[i] = dot(a, a, c[i]); });
  }
  V16 sum = zero();
  unroll<kSpinChains>([&](auto i) LORRY_UNROLLED { sum = add(sum, c[i]); });
  *sink = reduce_add(sum);
}

void spin_int8(int64_t iterations, float* sink) {
  I16 c[kSpinChains];
  // Chains that began alike would be computed once.
  unroll<kSpinChains>([&](auto i) LORRY_UNROLLED { c[i] = set1_int(i); });
  const W64 w{_mm512_set1_epi32(static_cast<int>(*sink))};
  for (int64_t k = 0; k < iterations; ++k) {
    unroll<kSpinChains>([&](auto i) LORRY_UNROLLED { accumulate(c[i], w, X4{w.v}); });
  }
  V16 sum = zero();
  unroll<kSpinChains>([&](auto i) LORRY_UNROLLED { sum = add(sum, to_floats(c[i])); });
  *sink = reduce_add(sum);
}

}  // namespace

const Kernels& avx512_kernels() {
  static constexpr Kernels kTable =
      table({spin_bf16, kSpinChains * 32.0 * 2, spin_int8, kSpinChains * 64.0 * 2}, false);
  return kTable;
}

const Kernels& avx512_fma_kernels() {
  static constexpr Kernels kTable = [] {
    Kernels k = table({spin_fma, kSpinFmaFlops, spin_int8, kSpinChains * 64.0 * 2}, true);
    k.bf16.shrink = shrink<Bf16Fma>;
    return k;
  }();
  return kTable;
}

}  // namespace lorry::cpu
#endif
