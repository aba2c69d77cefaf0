// The CPU backend: Ops on a thread pool, with the best instruction set that the processor has.
// Results do not depend on the number of threads; nor on the choice, AMX apart.
#pragma once
#include <memory>
#include <vector>

#include "base/thread_pool.h"
#include "ops/ops.h"

namespace lorry {

// avx512: F, BW, VL, DQ, VNNI and BF16. avx512_fma: the same, but linears multiply bf16 by FMA
// instead of vdpbf16ps, which takes as long as four FMA on the Intel machines that were measured.
// amx: the same with linears on AMX tiles, many times as fast where there are many rows.
enum class Isa { scalar, avx2, avx512, avx512_fma, amx };

const char* to_string(Isa isa);
// Whether all results have the bits of every other portable instruction set. amx sums the products
// of bf16 linears in the order of its tiles (kernels_amx.cpp), and is the one that is not.
constexpr bool portable(Isa isa) { return isa != Isa::amx; }
Isa best_isa();
std::vector<Isa> usable_isas();

// act: bf16, f16 or f32. The pool must outlive the result. Requires: isa is usable.
std::unique_ptr<Ops> make_cpu_ops(Dtype act, ThreadPool& pool, Isa isa = best_isa());

}  // namespace lorry
