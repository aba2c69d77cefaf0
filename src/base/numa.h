// Where threads run and pages lie on a machine with several NUMA nodes. Linux's calls, without
// libnuma. What the system refuses (a container often may not place memory) costs speed only.
#pragma once
#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include <pthread.h>
#include <sched.h>

#include "base/topology.h"

namespace lorry {

// Whether the thread will run on these CPUs alone, as will those that it starts.
bool bind_thread(pthread_t thread, std::span<const int> cpus);

// Binds the calling thread as long as it lives, which must be the end of it on the same thread.
class ThreadBinding {
 public:
  ThreadBinding() = default;  // binds nothing
  explicit ThreadBinding(std::span<const int> cpus);
  ThreadBinding(ThreadBinding&& other) noexcept;
  ThreadBinding& operator=(ThreadBinding&&) = delete;
  ~ThreadBinding();
  bool bound() const { return !before_.empty(); }

 private:
  std::vector<int> before_;  // where it could run; empty: it is not bound
};

// The pages between the multiples of `granule` that are nearest to both ends come from node `id` as
// far as it has room, in memory that was not written to yet. Requires: those pages belong to the
// caller's block; granule is a multiple of the page. False: the system refuses.
bool place_pages(std::byte* at, size_t bytes, size_t granule, int id);
// The pages come from all nodes in turn. Requires: `at` begins a page.
bool interleave_pages(std::byte* at, size_t bytes, const Topology& topology);

// Why the system would not place pages on these nodes; empty where it would.
std::string placement_refusal(const Topology& topology);

}  // namespace lorry
