#include "models/device_copy.h"

#include "weights/slice.h"

namespace lorry {

namespace {

size_t extent(const Tensor& t) {
  return static_cast<size_t>(((t.rows() - 1) * t.pitch + t.cols()) * size_of(t.dtype));
}

// A tensor of the processor as `like` lies on the device.
struct Mirror {
  explicit Mirror(const Tensor& like) : memory(extent(like)), tensor(like) {
    tensor.data = memory.data();
  }
  Buffer memory;
  Tensor tensor;
};

}  // namespace

void put_tensor(DeviceMemory* memory, const Tensor& dst, const Tensor& src) {
  if (memory == nullptr) return copy(dst, src);
  const Mirror mirror(dst);
  copy(mirror.tensor, src);
  memory->write(dst.data, mirror.tensor.data, extent(dst));
}

void get_tensor(const DeviceMemory* memory, const Tensor& dst, const Tensor& src) {
  if (memory == nullptr) return copy(dst, src);
  const Mirror mirror(src);
  memory->read(mirror.tensor.data, src.data, extent(src));
  copy(dst, mirror.tensor);
}

}  // namespace lorry
