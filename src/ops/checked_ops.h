// An Ops that verifies the shapes, dtypes and index ranges of every call (LORRY_CHECK: it aborts
// with the values) and then forwards to another. On in tests and debug builds.
#pragma once
#include <memory>

#include "ops/ops.h"

namespace lorry {

std::unique_ptr<Ops> make_checked_ops(std::unique_ptr<Ops> ops);

}  // namespace lorry
