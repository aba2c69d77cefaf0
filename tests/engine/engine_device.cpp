#include "engine/harness.h"

namespace lorry::test {

std::string test_device() { return "cpu"; }

}  // namespace lorry::test
