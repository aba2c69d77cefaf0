// Buffer: owns one 64-byte aligned block of memory (large ones on transparent huge pages), or one
// of a device. Arena: hands out pieces of a Buffer, at start only; nothing is given back.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

#include "lorry/tensor.h"

namespace lorry {

// The memory of a device that the processor does not reach: what is in it is copied. Any thread.
class DeviceMemory {
 public:
  virtual ~DeviceMemory() = default;
  // Zeroed, 256-byte aligned. Throws Error(over_capacity) naming the size.
  virtual std::byte* allocate(size_t bytes) = 0;
  virtual void release(std::byte* block) noexcept = 0;
  // From and to the processor's memory; done on return. write: the device is not using `to`;
  // read: after everything that was asked of the device.
  virtual void write(std::byte* to, const std::byte* from, size_t bytes) = 0;
  virtual void read(std::byte* to, const std::byte* from, size_t bytes) const = 0;
  // Within the device, after everything that was asked of it; the two may overlap.
  virtual void move(std::byte* to, const std::byte* from, size_t bytes) = 0;
  // Zeros for `rows` rows of `width` bytes, `pitch` apart, in order with the device's operations.
  virtual void clear(std::byte* to, size_t pitch, size_t width, size_t rows) = 0;
  // Waits for everything that was asked of the device.
  virtual void finish() const = 0;
  // Memory of the processor that will often be copied from or to; unpin before it is freed.
  virtual void pin(std::byte* block, size_t bytes) = 0;
  virtual void unpin(std::byte* block) noexcept = 0;
  virtual size_t available() const = 0;  // bytes
};

class Buffer {
 public:
  Buffer() = default;
  // Zeroed. Throws Error(over_capacity) naming the size when the system refuses. On the device
  // whose memory this is; null: the processor's. Requires: that outlives the buffer.
  explicit Buffer(size_t bytes, DeviceMemory* where = nullptr);
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  ~Buffer();

  std::byte* data() const { return data_; }
  size_t size() const { return size_; }  // size_for of the bytes that were asked
  // What a Buffer of `bytes` takes from the system: whole pages. Requires: bytes <= SIZE_MAX / 2.
  static size_t size_for(size_t bytes);

 private:
  std::byte* data_ = nullptr;
  size_t size_ = 0;
  DeviceMemory* where_ = nullptr;
};

// A Buffer of the processor, pinned for the device that copies from and to it; null: there is none.
class PinnedBuffer {
 public:
  PinnedBuffer() = default;
  // Throws and requires as Buffer.
  PinnedBuffer(size_t bytes, DeviceMemory* device);
  PinnedBuffer(PinnedBuffer&& other) noexcept;
  PinnedBuffer& operator=(PinnedBuffer&& other) noexcept;
  ~PinnedBuffer();

  std::byte* data() const { return buffer_.data(); }
  size_t size() const { return buffer_.size(); }

 private:
  Buffer buffer_;
  DeviceMemory* device_ = nullptr;
};

class Arena {
 public:
  explicit Arena(size_t bytes, DeviceMemory* where = nullptr)
      : buffer_(bytes, where), data_(buffer_.data()), size_(buffer_.size()) {}
  // In memory that is not its own, 64-byte aligned, and outlives it.
  explicit Arena(std::span<std::byte> memory) : data_(memory.data()), size_(memory.size()) {}

  // A 64-byte aligned tensor of `shape`. Aborts when the arena is exhausted: sizes are planned.
  Tensor tensor(Dtype dtype, Shape shape);
  // As above with rows padded by a cache line when their pitch would be a multiple of 4 KiB,
  // so that several rows do not share one set of the L1 cache.
  Tensor matrix(Dtype dtype, int64_t rows, int64_t cols);
  size_t used() const { return used_; }
  size_t size() const { return size_; }

  // Bytes that tensor() or matrix() will take.
  static size_t tensor_bytes(Dtype dtype, Shape shape);
  static size_t matrix_bytes(Dtype dtype, int64_t rows, int64_t cols);

 private:
  std::byte* take(size_t bytes);

  Buffer buffer_;
  std::byte* data_;
  size_t size_;
  size_t used_ = 0;
};

}  // namespace lorry
