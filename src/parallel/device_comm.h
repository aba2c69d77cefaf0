// Ranks with a device each: what is on the devices is summed there, messages and logits go by way
// of the processors.
#pragma once
#include <memory>

#include "ops/device_link.h"
#include "parallel/comm.h"

namespace lorry {

// all_reduce and parts are of tensors on the device, gather of tensors of the processor.
std::unique_ptr<Comm> make_device_comm(std::shared_ptr<Comm> host,
                                       std::unique_ptr<DeviceLink> link);

}  // namespace lorry
