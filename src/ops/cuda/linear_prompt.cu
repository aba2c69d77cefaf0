// linear for prompts, of weights in bf16.
#include "ops/cuda/prompt.h"

namespace lorry::cuda {

void linear_prompt_bf16(Stream s, const LinearArgs& a) { multiply_prompt<LoadBf16>(s, a); }

}  // namespace lorry::cuda
