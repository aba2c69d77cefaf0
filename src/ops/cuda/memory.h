// The memory of the device, and the table of what is its. Staging: room for what a call reads or
// writes that lies in the processor's memory.
#pragma once
#include <cstddef>
#include <map>
#include <shared_mutex>
#include <vector>

#include "base/memory.h"
#include "ops/cuda/runtime.h"

namespace lorry::cuda {

class CudaMemory final : public DeviceMemory {
 public:
  CudaMemory();
  ~CudaMemory() override;

  std::byte* allocate(size_t bytes) override;
  void release(std::byte* block) noexcept override;
  void write(std::byte* to, const std::byte* from, size_t bytes) override;
  void read(std::byte* to, const std::byte* from, size_t bytes) const override;
  void move(std::byte* to, const std::byte* from, size_t bytes) override;
  void clear(std::byte* to, size_t pitch, size_t width, size_t rows) override;
  void finish() const override { wait(stream_); }
  void pin(std::byte* block, size_t bytes) override;
  void unpin(std::byte* block) noexcept override;
  size_t available() const override;

  // Whether p leads into one of the blocks.
  bool contains(const void* p) const;
  // Of the kernels.
  Stream stream() const { return stream_; }

 private:
  Stream stream_, copies_;
  mutable std::shared_mutex mutex_;
  std::map<const std::byte*, size_t> blocks_;
};

// Pairs of pinned and device memory. What is put in the one is copied to the other in order with
// the kernels; nothing is given out twice before the kernels that may use it are done.
class Staging {
 public:
  explicit Staging(CudaMemory& memory) : memory_(memory) {}
  ~Staging();
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  struct Room {
    std::byte* host = nullptr;
    std::byte* device = nullptr;
    size_t bytes = 0;
  };
  Room take(size_t bytes);
  void send(const Room& room);
  // Back, and waits.
  void fetch(const Room& room);
  // Between two calls: what was taken may be given out again.
  void next_call();

 private:
  struct Chunk {
    Buffer device;
    void* host = nullptr;
    size_t used = 0;
  };
  void add_chunk(size_t bytes);

  CudaMemory& memory_;
  std::vector<Chunk> chunks_;
};

}  // namespace lorry::cuda
