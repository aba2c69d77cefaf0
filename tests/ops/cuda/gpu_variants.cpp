// The CUDA backend on a GPU: one variant.
#include "ops/checked_ops.h"
#include "ops/cuda/cuda_ops.h"
#include "ops/support.h"

namespace lorry::test {

std::vector<Variant> variants() { return {{"cuda", true, false, 0}}; }

Variant best_variant() { return variants().back(); }
Variant best_portable_variant() { return best_variant(); }

std::unique_ptr<Ops> checked_ops(Dtype act, ThreadPool& pool, const Variant&) {
  return make_checked_ops(make_cuda_ops(act, pool));
}

}  // namespace lorry::test
