// The CUDA backend: Ops on one NVIDIA GPU. A build without CUDA has the same functions, which say
// so (no_cuda.cpp); so does a machine without a driver or a device.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/thread_pool.h"
#include "ops/device_link.h"
#include "ops/ops.h"

namespace lorry {

// The kernels of attention have no larger heads.
constexpr int32_t kCudaMaxHeadDim = 256;

struct CudaStatus {
  bool built = false;   // the program has CUDA code
  bool usable = false;  // and there is a device for it
  // The device, or what is missing.
  std::string text;
  std::string name;  // of the device
};
CudaStatus cuda_status();

// act: bf16, f16 or f32. The pool, which packs weights, must outlive the result. Throws
// Error(unsupported) where cuda_status().usable is false.
std::unique_ptr<Ops> make_cuda_ops(Dtype act, ThreadPool& pool);

struct CudaLinkOptions {
  int rank = 0, ranks = 1;
  int64_t most = 0;     // values of one sum
  std::string library;  // NCCL's; empty: libnccl.so.2, as the system finds it
  // Gives rank 0's message to all.
  std::function<void(std::vector<std::byte>&)> broadcast;
};
// Why there is no NCCL to link GPUs with; empty: there is.
std::string why_no_cuda_link(const std::string& library);
// A link of the GPUs of several processes, each with one. Every rank calls, with the Ops of
// make_cuda_ops, which outlive the result; returns when all have. Throws Error(unsupported |
// over_capacity).
std::unique_ptr<DeviceLink> make_cuda_link(Ops& ops, const CudaLinkOptions& o);

}  // namespace lorry
