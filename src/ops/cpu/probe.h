// What this machine can do at most, measured in a few tenths of a second; benches state their
// figures as fractions of it, with both taken in the same run.
#pragma once
#include "base/thread_pool.h"
#include "ops/cpu/cpu_ops.h"

namespace lorry {

struct Probe {
  double bf16_gflops = 0;  // the fastest multiplication there is: tiles, vdpbf16ps, f32 FMA
  double int8_gops = 0;    // tiles, vpdpbusd; 0 where there is none
  double read_gb_s = 0;    // reading 512 MiB
};

// What `isa` can do, on all threads of the pool. Throws Error(over_capacity) without 512 MiB of
// memory.
Probe probe_machine(ThreadPool& pool, Isa isa = best_isa());

}  // namespace lorry
