// The ranks of a model beside rank 0: they do what rank 0's engine says (leader.h).
#pragma once
#include "base/log.h"
#include "engine/engine.h"

namespace lorry {

// Loads the rank's part of the model and follows rank 0 until its engine ends. Requires: options as
// rank 0's, but for comm, whose rank is not 0. Throws Error as Engine does.
void follow(const EngineOptions& options, Log& log);

}  // namespace lorry
