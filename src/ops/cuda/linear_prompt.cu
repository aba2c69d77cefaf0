// linear for prompts, of weights in the type of x.
#include "ops/cuda/prompt.h"

namespace lorry::cuda {

void linear_prompt(Stream s, const LinearArgs& a) {
  a.act == Act::bf16 ? multiply_prompt<LoadPlain<Bf16>>(s, a)
                     : multiply_prompt<LoadPlain<F16>>(s, a);
}

}  // namespace lorry::cuda
