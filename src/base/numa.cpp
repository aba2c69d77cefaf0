#include "base/numa.h"

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdint>
#include <cstring>
#include <utility>

#include <fmt/format.h>
#include <linux/mempolicy.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/memory.h"

namespace lorry {

namespace {

constexpr size_t kBitsOfWord = sizeof(unsigned long) * CHAR_BIT;

// 0, or errno.
int set_policy(std::byte* at, size_t bytes, int mode, const Topology& nodes) {
  if (bytes == 0) return 0;
  std::vector<unsigned long> mask;
  for (const NumaNode& node : nodes) {
    const auto id = static_cast<size_t>(node.id);
    mask.resize(std::max(mask.size(), id / kBitsOfWord + 1));
    mask[id / kBitsOfWord] |= 1UL << id % kBitsOfWord;
  }
  // The system reads one bit less than it is told.
  const long result =
      syscall(SYS_mbind, at, bytes, mode, mask.data(), mask.size() * kBitsOfWord + 1, 0UL);
  return result == 0 ? 0 : errno;
}

std::byte* nearest_multiple(std::byte* at, size_t granule) {
  const size_t over = reinterpret_cast<uintptr_t>(at) % granule;
  return over < granule - over ? at - over : at + (granule - over);
}

}  // namespace

bool bind_thread(pthread_t thread, std::span<const int> cpus) {
  if (cpus.empty()) return false;
  std::vector<cpu_set_t> set(static_cast<size_t>(cpus.back()) / CPU_SETSIZE + 1);
  const size_t bytes = set.size() * sizeof(cpu_set_t);
  for (const int cpu : cpus) CPU_SET_S(static_cast<size_t>(cpu), bytes, set.data());
  return pthread_setaffinity_np(thread, bytes, set.data()) == 0;
}

ThreadBinding::ThreadBinding(std::span<const int> cpus) : before_(usable_cpus()) {
  if (!bind_thread(pthread_self(), cpus)) before_.clear();
}

ThreadBinding::ThreadBinding(ThreadBinding&& other) noexcept
    : before_(std::exchange(other.before_, {})) {}

ThreadBinding::~ThreadBinding() {
  if (!before_.empty()) bind_thread(pthread_self(), before_);
}

bool place_pages(std::byte* at, size_t bytes, size_t granule, int id) {
  std::byte* from = nearest_multiple(at, granule);
  std::byte* to = nearest_multiple(at + bytes, granule);
  return set_policy(from, static_cast<size_t>(to - from), MPOL_PREFERRED, {{id, {}}}) == 0;
}

bool interleave_pages(std::byte* at, size_t bytes, const Topology& topology) {
  return set_policy(at, bytes, MPOL_INTERLEAVE, topology) == 0;
}

std::string placement_refusal(const Topology& topology) {
  const Buffer page(4096);
  for (const NumaNode& node : topology) {
    const int error = set_policy(page.data(), page.size(), MPOL_PREFERRED, {node});
    if (error != 0) return fmt::format("mbind to node {}: {}", node.id, std::strerror(error));
  }
  return "";
}

}  // namespace lorry
