// The CUDA backend: Ops on one NVIDIA GPU. A build without CUDA has the same functions, which say
// so (no_cuda.cpp); so does a machine without a driver or a device.
#pragma once
#include <memory>
#include <string>

#include "base/thread_pool.h"
#include "ops/ops.h"

namespace lorry {

// The kernels of attention have no larger heads.
constexpr int32_t kCudaMaxHeadDim = 256;

struct CudaStatus {
  bool built = false;   // the program has CUDA code
  bool usable = false;  // and there is a device for it
  // The device, or what is missing.
  std::string text;
};
CudaStatus cuda_status();

// act: bf16 or f32. The pool, which packs weights, must outlive the result. Throws
// Error(unsupported) where cuda_status().usable is false.
std::unique_ptr<Ops> make_cuda_ops(Dtype act, ThreadPool& pool);

}  // namespace lorry
