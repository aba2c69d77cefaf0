// linear for prompts, of weights in fp8.
#include "ops/cuda/prompt.h"

namespace lorry::cuda {

void linear_prompt_fp8(Stream s, const LinearArgs& a) {
  a.act == Act::bf16 ? multiply_prompt<LoadFp8<Bf16>>(s, a) : multiply_prompt<LoadFp8<F16>>(s, a);
}

}  // namespace lorry::cuda
