// Buffer: owns one 64-byte aligned block of memory (large ones on transparent huge pages).
// Arena: hands out pieces of a Buffer, at start only; nothing is given back.
#pragma once
#include <cstddef>
#include <cstdint>

#include "lorry/tensor.h"

namespace lorry {

class Buffer {
 public:
  Buffer() = default;
  // Zeroed. Throws Error(over_capacity) naming the size when the system refuses.
  explicit Buffer(size_t bytes);
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
};

class Arena {
 public:
  explicit Arena(size_t bytes) : buffer_(bytes) {}

  // A 64-byte aligned tensor of `shape`. Aborts when the arena is exhausted: sizes are planned.
  Tensor tensor(Dtype dtype, Shape shape);
  // As above with rows padded by a cache line when their pitch would be a multiple of 4 KiB,
  // so that several rows do not share one set of the L1 cache.
  Tensor matrix(Dtype dtype, int64_t rows, int64_t cols);
  size_t used() const { return used_; }
  size_t size() const { return buffer_.size(); }

  // Bytes that tensor() or matrix() will take.
  static size_t tensor_bytes(Dtype dtype, Shape shape);
  static size_t matrix_bytes(Dtype dtype, int64_t rows, int64_t cols);

 private:
  std::byte* take(size_t bytes);

  Buffer buffer_;
  size_t used_ = 0;
};

}  // namespace lorry
