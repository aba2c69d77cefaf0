// The machine as /proc and /sys describe it, for `lorry env`. What they do not say is left empty.
#pragma once
#include <cstdint>
#include <string>

#include "base/topology.h"

namespace lorry {

struct Machine {
  int cpus = 0;                                 // logical, that this process may run on
  Topology nodes;                               // NUMA, with the CPUs of each
  int64_t memory_total = 0, memory_limit = 0;   // bytes; the limit of the control group, 0: none
  std::string transparent_huge_pages;           // "madvise", "always", "never"
  int64_t huge_pages = 0, huge_pages_free = 0;  // set aside, which Lorry does not need
  int nvidia_gpus = 0;
  std::string system;  // "Linux 6.1.0 x86_64"
};

Machine read_machine();

// "sse4_2 avx2 ...": those of the processor's features that kernels care about.
std::string cpu_features();

// Bytes of the files below `folder`, links not followed; 0 where there is none.
int64_t folder_bytes(const std::string& folder);

// Whether a server could listen there now.
bool is_port_free(uint16_t port);

}  // namespace lorry
