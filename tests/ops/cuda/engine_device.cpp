#include "engine/harness.h"

namespace lorry::test {

std::string test_device() { return "cuda"; }

}  // namespace lorry::test
