#include "engine/harness.h"

namespace lorry::test {

std::string test_device() { return "cuda"; }
std::string test_nccl() { return LORRY_FAKE_NCCL; }

}  // namespace lorry::test
