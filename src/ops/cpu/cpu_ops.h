// The CPU backend: Ops on a thread pool, with the best instruction set that the processor has.
// Results do not depend on the choice, nor on the number of threads.
#pragma once
#include <memory>
#include <vector>

#include "base/thread_pool.h"
#include "ops/ops.h"

namespace lorry {

enum class Isa { scalar, avx2, avx512 };  // avx512: F, BW, VL, DQ, VNNI and BF16

const char* to_string(Isa isa);
Isa best_isa();
std::vector<Isa> usable_isas();  // slowest first

// act: bf16 or f32. The pool must outlive the result. Requires: isa is usable.
std::unique_ptr<Ops> make_cpu_ops(Dtype act, ThreadPool& pool, Isa isa = best_isa());

}  // namespace lorry
