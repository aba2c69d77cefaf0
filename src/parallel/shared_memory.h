// Ranks of one host: threads of a process, or processes that have inherited a descriptor. Each has
// two slots in the common memory, used in turn; what it writes there the others read directly.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>

#include "parallel/comm.h"

namespace lorry {

// The common memory of one group of ranks. Whoever makes it outlives nobody: each rank maps it.
class SharedMemory {
 public:
  // Memory for `ranks` ranks that lives as long as a process has it. Throws Error(over_capacity).
  static std::shared_ptr<SharedMemory> create(int ranks);
  // The same memory, by a descriptor of another process, which is taken over: it is closed also
  // when this throws, Error(invalid_argument), because it is of something else.
  static std::shared_ptr<SharedMemory> attach(int descriptor);
  ~SharedMemory();
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  int ranks() const;
  // Of this memory alone.
  uint64_t token() const;
  // Survives exec; owned by this object.
  int descriptor() const { return descriptor_; }
  std::byte* data() const { return data_; }

  // More of it, behind what there is: of each rank `bytes`, a multiple of 4096. Each rank maps it
  // by a call of its own, with the same size, and unmaps it with munmap(). Requires: all have
  // attached. Throws Error(over_capacity).
  std::byte* map_more(size_t bytes) const;

 private:
  SharedMemory(int descriptor, size_t bytes);
  int descriptor_;
  size_t bytes_;
  std::byte* data_;
};

// Requires: 0 <= rank < memory->ranks(), each rank once.
std::unique_ptr<Comm> make_shared_memory_comm(std::shared_ptr<SharedMemory> memory, int rank);

}  // namespace lorry
