#include "ops/cpu/isa.h"

#include <algorithm>

#if defined(__x86_64__) && !defined(LORRY_ONLY_SCALAR)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

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
    case Isa::amx:
      return "amx";
  }
  return "?";
}

#if defined(__x86_64__) && !defined(LORRY_ONLY_SCALAR)
namespace {

// g++ 12 has no name for AMX in __builtin_cpu_supports. The system gives a process the tiles'
// state when it asks.
bool tiles_usable() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  constexpr unsigned kBf16 = 1U << 22, kTile = 1U << 24, kInt8 = 1U << 25;
  constexpr unsigned kAll = kBf16 | kTile | kInt8;
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return (d & kAll) == kAll && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace

std::vector<Isa> usable_isas() {
  __builtin_cpu_init();
  std::vector<Isa> isas{Isa::scalar};
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) isas.push_back(Isa::avx2);
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16")) {
    isas.push_back(Isa::avx512);
    isas.push_back(Isa::avx512_fma);
    if (tiles_usable()) isas.push_back(Isa::amx);
  }
  return isas;
}

const cpu::Kernels& cpu::kernels_of(Isa isa) {
  const std::vector<Isa> usable = usable_isas();
  LORRY_CHECK(std::find(usable.begin(), usable.end(), isa) != usable.end(), "{}", to_string(isa));
  if (isa == Isa::avx512) return avx512_kernels();
  if (isa == Isa::avx512_fma) return avx512_fma_kernels();
  if (isa == Isa::amx) return amx_kernels();
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
