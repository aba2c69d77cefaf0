// Topology: the NUMA nodes whose CPUs this process may use. Empty, or of one node: nothing is
// bound, and the system decides where threads and pages are.
#pragma once
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace lorry {

struct NumaNode {
  int id = 0;             // the system's number of the node that these CPUs' memory comes from
  std::vector<int> cpus;  // ascending, never empty
};
using Topology = std::vector<NumaNode>;  // by rising id

// The numbers of "0-3,8,10-11", ascending; nothing for a text that is no such list.
std::optional<std::vector<int>> parse_number_list(const std::string& text);
// As above, backwards.
std::string format_number_list(std::span<const int> ascending);

// CPUs that the calling thread may run on, and nodes that this process may take memory from; both
// ascending. Control groups (cpuset) limit both.
std::vector<int> usable_cpus();
std::vector<int> usable_memory_nodes();

// From a folder like /sys/devices/system/node. CPUs of a node without usable memory count to the
// nearest one that has some; nodes without usable CPUs are left out. Empty where the folder does
// not say, or says what cannot be read.
Topology read_topology(const std::string& folder, const std::vector<int>& cpus,
                       const std::vector<int>& memory_nodes);
// Of this machine and process.
Topology read_topology();

// "0 (CPUs 0-3), 1 (CPUs 4-7)".
std::string to_string(const Topology& topology);

}  // namespace lorry
