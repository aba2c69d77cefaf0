// linear with x in bf16 or f16 for a handful of outputs.
#include "ops/cuda/decode.h"
#include "ops/cuda/launch.h"

namespace lorry::cuda {

namespace {

template <class Load>
LORRY_KERNEL(32 * kThinWarps)
thin_kernel(LinearArgs a) {
  thin_block<Load>(
      a, [] { wait_for_previous(); },
      [&](float v, int64_t column, int32_t row) { a.y[row * a.y_pitch + column] = v; });
}

template <class Load>
void multiply(Stream s, const LinearArgs& a) {
  start<LinearArgs, thin_kernel<Load>>("linear_thin", thin_grid(a), 32 * kThinWarps, kPartsShared,
                                       s, a);
}

}  // namespace

void linear_thin(Stream s, const LinearArgs& a) {
  with_load(a, [&](auto load) { multiply<decltype(load)>(s, a); });
}

}  // namespace lorry::cuda
