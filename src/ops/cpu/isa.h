// Which kernels go with which instruction set.
#pragma once
#include "ops/cpu/cpu_ops.h"
#include "ops/cpu/kernels.h"

namespace lorry::cpu {

// Requires: isa is usable.
const Kernels& kernels_of(Isa isa);

}  // namespace lorry::cpu
