// DeviceLink: how the devices of the ranks of one model add up what each of them has computed,
// without the processors.
#pragma once
#include <cstdint>

namespace lorry {

class DeviceLink {
 public:
  virtual ~DeviceLink() = default;
  // y, n values in memory of the device, becomes the sum over the ranks, added up in their order:
  // the same bits on each. In order with the device's operations. Every rank makes the same calls,
  // with an n that is at most what the link was made for.
  virtual void sum(float* y, int64_t n) = 0;
};

}  // namespace lorry
