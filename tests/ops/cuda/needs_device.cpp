// Skips all tests of the program, and says why, where there is no device to run them on.
#include <gtest/gtest.h>

#include "ops/cuda/cuda_ops.h"

namespace lorry::test {
namespace {

class NeedsDevice final : public testing::Environment {
 public:
  void SetUp() override {
    const CudaStatus status = cuda_status();
    if (!status.usable) GTEST_SKIP() << status.text;
    std::printf("device: %s\n", status.text.c_str());
  }
};

const auto* const kRegistered = testing::AddGlobalTestEnvironment(new NeedsDevice);

}  // namespace
}  // namespace lorry::test
