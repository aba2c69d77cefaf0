// NUMA nodes on a machine that need not have any.
#pragma once
#include <algorithm>
#include <stdexcept>
#include <vector>

#include "base/topology.h"

namespace lorry::test {

// `n` nodes with a CPU each that this process may use, in turn; memory is that of a real node.
inline Topology fake_nodes(int n) {
  const std::vector<int> cpus = usable_cpus();
  const std::vector<int> memory = usable_memory_nodes();
  if (cpus.empty()) throw std::runtime_error("the system does not tell which CPUs may be used");
  Topology topology;
  for (int i = 0; i < n; ++i) {
    const int cpu = cpus[static_cast<size_t>(i) % cpus.size()];
    topology.push_back({memory.empty() ? 0 : memory.front(), {cpu}});
  }
  return topology;
}

}  // namespace lorry::test
