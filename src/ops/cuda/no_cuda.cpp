// In place of the backend where the program is built without CUDA.
#include "base/error.h"
#include "ops/cuda/cuda_ops.h"

namespace lorry {

CudaStatus cuda_status() {
  return {false,
          false,
          "this program was built without CUDA (docs/cuda.md says how to build it with CUDA)",
          {}};
}

std::unique_ptr<Ops> make_cuda_ops(Dtype, ThreadPool&) {
  fail(Code::unsupported, "no CUDA device can be used: {}", cuda_status().text);
}

std::string why_no_cuda_link(const std::string&) { return cuda_status().text; }

std::unique_ptr<DeviceLink> make_cuda_link(Ops&, const CudaLinkOptions&) {
  fail(Code::unsupported, "GPUs cannot be linked: {}", cuda_status().text);
}

}  // namespace lorry
