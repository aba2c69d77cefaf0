#include "ops/cpu/isa.h"

#include <algorithm>

#include "base/error.h"

namespace lorry {

const char* to_string(Isa isa) {
  switch (isa) {
    case Isa::scalar:
      return "scalar";
    case Isa::avx2:
      return "avx2";
    case Isa::avx512:
      return "avx512";
    case Isa::avx512_fma:
      return "avx512_fma";
  }
  return "?";
}

#if defined(__x86_64__)
std::vector<Isa> usable_isas() {
  __builtin_cpu_init();
  std::vector<Isa> isas{Isa::scalar};
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) isas.push_back(Isa::avx2);
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16")) {
    isas.push_back(Isa::avx512);
    isas.push_back(Isa::avx512_fma);
  }
  return isas;
}

const cpu::Kernels& cpu::kernels_of(Isa isa) {
  const std::vector<Isa> usable = usable_isas();
  LORRY_CHECK(std::find(usable.begin(), usable.end(), isa) != usable.end(), "{}", to_string(isa));
  if (isa == Isa::avx512) return avx512_kernels();
  if (isa == Isa::avx512_fma) return avx512_fma_kernels();
  return isa == Isa::avx2 ? avx2_kernels() : scalar_kernels();
}

Isa best_isa() {
  const Isa last = usable_isas().back();
  // AMD's vdpbf16ps is one operation; Intel's has a quarter of the rate of FMA.
  return last == Isa::avx512_fma && __builtin_cpu_is("amd") ? Isa::avx512 : last;
}
#else
std::vector<Isa> usable_isas() { return {Isa::scalar}; }

const cpu::Kernels& cpu::kernels_of(Isa isa) {
  LORRY_CHECK(isa == Isa::scalar, "{}", to_string(isa));
  return scalar_kernels();
}

Isa best_isa() { return Isa::scalar; }
#endif

}  // namespace lorry
