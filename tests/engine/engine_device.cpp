#include "engine/harness.h"

namespace lorry::test {

std::string test_device() { return "cpu"; }
std::string test_nccl() { return {}; }

}  // namespace lorry::test
