// Between tensors of the processor and those of the backend, which may lie on a device.
#pragma once
#include "base/memory.h"
#include "lorry/tensor.h"

namespace lorry {

// dst <- src, converted to dst's type. dst (of put) or src (of get) lies in `memory`; null: neither
// does. Requires: equal shapes, of one dimension or two.
void put_tensor(DeviceMemory* memory, const Tensor& dst, const Tensor& src);
void get_tensor(const DeviceMemory* memory, const Tensor& dst, const Tensor& src);

}  // namespace lorry
