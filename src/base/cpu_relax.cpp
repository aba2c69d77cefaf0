#include "base/cpu_relax.h"

namespace lorry {

// The build knows the instruction of the processor that it compiles for.
void cpu_relax() { asm volatile(LORRY_PAUSE ::: "memory"); }

}  // namespace lorry
