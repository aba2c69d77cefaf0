// The CPU backend: Ops on a thread pool, with the best instruction set that the processor has.
// Results do not depend on the choice, nor on the number of threads.
#pragma once
#include <memory>
#include <vector>

#include "base/thread_pool.h"
#include "ops/ops.h"

namespace lorry {

// avx512: F, BW, VL, DQ, VNNI and BF16. avx512_fma: the same, but linears multiply bf16 by FMA
// instead of vdpbf16ps, which takes as long as four FMA on the Intel machines that were measured.
enum class Isa { scalar, avx2, avx512, avx512_fma };

const char* to_string(Isa isa);
Isa best_isa();
std::vector<Isa> usable_isas();

// act: bf16 or f32. The pool must outlive the result. Requires: isa is usable.
std::unique_ptr<Ops> make_cpu_ops(Dtype act, ThreadPool& pool, Isa isa = best_isa());

}  // namespace lorry
