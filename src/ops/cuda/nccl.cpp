// The link of several GPUs by NCCL, which is loaded where it is wanted: the program starts without.
// NCCL only gathers. The order of its own sums depends on where in a message a value lies, that is
// on a row's batch mates.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <dlfcn.h>

#include "base/error.h"
#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/kernels.h"
#include "ops/cuda/memory.h"

namespace lorry {

namespace cuda {
namespace {

constexpr const char* kSystemLibrary = "libnccl.so.2";

// What nccl.h declares, since NCCL 2.4.
constexpr int kSuccess = 0;
constexpr int kFloat32 = 7;
struct UniqueId {
  char bytes[128];
};
using Group = struct ncclComm*;

class Nccl {
 public:
  // Throws Error(unsupported).
  explicit Nccl(const std::string& library)
      : name_(library.empty() ? kSystemLibrary : library),
        handle_(dlopen(name_.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE)) {
    if (handle_ == nullptr) {
      fail(Code::unsupported,
           "several GPUs exchange by NCCL, which cannot be loaded ({}): install libnccl2, or the "
           "Python package nvidia-nccl-cu13 and name its libnccl.so.2 with --nccl-library",
           dlerror());
    }
    find(get_unique_id, "ncclGetUniqueId");
    find(comm_init_rank, "ncclCommInitRank");
    find(all_gather, "ncclAllGather");
    find(comm_abort, "ncclCommAbort");
    find(error_string, "ncclGetErrorString");
  }
  ~Nccl() { dlclose(handle_); }
  Nccl(const Nccl&) = delete;
  Nccl& operator=(const Nccl&) = delete;

  int (*get_unique_id)(UniqueId*) = nullptr;
  int (*comm_init_rank)(Group*, int ranks, UniqueId, int rank) = nullptr;
  int (*all_gather)(const void* own, void* all, size_t n, int type, Group, Stream) = nullptr;
  int (*comm_abort)(Group) = nullptr;
  const char* (*error_string)(int) = nullptr;

 private:
  template <class F>
  void find(F*& function, const char* symbol) {
    function = reinterpret_cast<F*>(dlsym(handle_, symbol));
    if (function != nullptr) return;
    dlclose(handle_);
    fail(Code::unsupported, "{} has no function {}: is it NCCL 2?", name_, symbol);
  }

  const std::string name_;
  void* const handle_;
};

class NcclLink final : public DeviceLink {
 public:
  NcclLink(CudaMemory& memory, const CudaLinkOptions& o)
      : nccl_(o.library),
        memory_(memory),
        ranks_(o.ranks),
        most_(o.most),
        all_(static_cast<size_t>(o.ranks) * static_cast<size_t>(o.most) * sizeof(float), &memory) {
    UniqueId id{};
    if (o.rank == 0) check(nccl_.get_unique_id(&id), "a name for the group");
    std::vector<std::byte> message(sizeof id);
    std::memcpy(message.data(), &id, sizeof id);
    o.broadcast(message);
    LORRY_CHECK(message.size() == sizeof id, "{} bytes", message.size());
    std::memcpy(&id, message.data(), sizeof id);
    check(nccl_.comm_init_rank(&group_, o.ranks, id, o.rank), "a group of GPUs");
  }
  // Nothing is under way any more, and nobody is waited for.
  ~NcclLink() override {
    memory_.finish();
    nccl_.comm_abort(group_);
  }

  void sum(float* y, int64_t n) override {
    LORRY_CHECK(n >= 0 && n <= most_, "a sum of {} values, planned for {}", n, most_);
    auto* all = reinterpret_cast<float*>(all_.data());
    const int status =
        nccl_.all_gather(y, all, static_cast<size_t>(n), kFloat32, group_, memory_.stream());
    if (status != kSuccess) lose(status);
    sum_ranks(memory_.stream(), {y, all, n, ranks_});
  }

 private:
  void check(int status, const char* what) const {
    if (status == kSuccess) return;
    fail(Code::unsupported, "NCCL: {}: {} (NCCL_DEBUG=INFO says more)", what,
         nccl_.error_string(status));
  }
  // Other ranks wait within a step: there is nothing to go on with.
  [[noreturn]] void lose(int status) const {
    std::fprintf(stderr, "NCCL: %s; a GPU or its rank is lost, restart the program\n",
                 nccl_.error_string(status));
    std::_Exit(70);
  }

  const Nccl nccl_;
  CudaMemory& memory_;
  const int32_t ranks_;
  const int64_t most_;
  Buffer all_;
  Group group_ = nullptr;
};

}  // namespace
}  // namespace cuda

std::string why_no_cuda_link(const std::string& library) {
  try {
    const cuda::Nccl nccl(library);
    return {};
  } catch (const Error& e) {
    return e.what();
  }
}

std::unique_ptr<DeviceLink> make_cuda_link(Ops& ops, const CudaLinkOptions& o) {
  auto* memory = dynamic_cast<cuda::CudaMemory*>(ops.memory());
  LORRY_CHECK(memory != nullptr, "ops of another device");
  return std::make_unique<cuda::NcclLink>(*memory, o);
}

}  // namespace lorry
