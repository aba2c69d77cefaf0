// What the system says about where pages come from.
#pragma once
#include <climits>
#include <cstddef>
#include <string>
#include <vector>

#include <linux/mempolicy.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/fake_nodes.h"
#include "base/numa.h"

namespace lorry::test {

// What a page's memory was told: MPOL_DEFAULT, MPOL_PREFERRED, ...; -1: the system does not say.
inline int policy_of(const std::byte* at) {
  constexpr size_t kNodes = 1024;
  int mode = -1;
  std::vector<unsigned long> nodes(kNodes / sizeof(unsigned long) / CHAR_BIT);
  const long result =
      syscall(SYS_get_mempolicy, &mode, nodes.data(), kNodes, at, long{MPOL_F_ADDR});
  return result == 0 ? mode : -1;
}

// The node that a page is on; -1: the system does not say.
inline int node_of(const std::byte* at) {
  int node = -1;
  const long result =
      syscall(SYS_get_mempolicy, &node, nullptr, 0UL, at, long{MPOL_F_ADDR | MPOL_F_NODE});
  return result == 0 ? node : -1;
}

// Why tests of it must be skipped; empty: they need not.
inline std::string refusal() {
  const std::string why = placement_refusal(fake_nodes(2));
  return why.empty() ? "" : "this system places no memory: " + why;
}

}  // namespace lorry::test
