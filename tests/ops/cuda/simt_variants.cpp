// The variants of the CUDA backend where its kernels run on the processor: the two orders in which
// the threads of a block take turns. A result that depends on it lacks a barrier.
#include "ops/checked_ops.h"
#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/simt/simt.h"
#include "ops/support.h"

namespace lorry::test {

std::vector<Variant> variants() {
  return {{"forward", true, true, 0}, {"backward", true, true, 1}};
}

Variant best_variant() { return variants().back(); }
Variant best_portable_variant() { return best_variant(); }

std::unique_ptr<Ops> checked_ops(Dtype act, ThreadPool& pool, const Variant& v) {
  simt::set_schedule(v.number == 0 ? simt::Schedule::forward : simt::Schedule::backward);
  return make_checked_ops(make_cuda_ops(act, pool));
}

}  // namespace lorry::test
