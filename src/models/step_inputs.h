// What a step reads that is made on the processor: ids, places, block tables, tables of RoPE. A
// backend with memory of its own gets it by one copy a step; another reads it where it is.
#pragma once
#include <cstdint>
#include <span>

#include "base/memory.h"
#include "lorry/tensor.h"

namespace lorry {

class StepInputs {
 public:
  // memory: the backend's; null: it has none of its own.
  explicit StepInputs(DeviceMemory* memory) : memory_(memory) {}

  // A step begins, that puts up to n arrays of `elements` numbers of 32 bits in all. What the last
  // step put is gone.
  void begin(size_t elements, size_t n);
  // Where the backend reads the values after send(). Without a device: where they are.
  std::span<const int32_t> put(std::span<const int32_t> values);
  // A matrix to be filled before send(), and where the backend reads it. Without a device both are
  // `own`.
  struct Pair {
    Tensor fill, read;
  };
  Pair matrix(const Tensor& own);
  void send();

 private:
  // Its place on the processor; `device`: the one on the device.
  std::byte* take(size_t bytes, std::byte*& device);

  DeviceMemory* memory_;
  Buffer host_, device_;
  size_t used_ = 0;
};

}  // namespace lorry
