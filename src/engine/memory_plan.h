// Decides at start what all large memory is for, from one budget: what is available.
#pragma once
#include "engine/engine.h"
#include "models/share.h"
#include "ops/ops.h"

namespace lorry {

// Limits of one forward pass, from the options.
ForwardLimits forward_limits(const EngineOptions& options);

// The longest sequence that may be asked for: the option, or what the model admits.
// Throws Error(invalid_argument) when the option exceeds the model's positions.
int64_t longest_sequence(const EngineOptions& options, const Spec& spec);

// `available`: bytes before the weights, of which there are `weights`, are loaded. Throws
// Error(over_capacity) naming what is needed, what there is and the flag to change.
MemoryPlan plan_memory(const EngineOptions& options, const ModelShare& share, const Ops& ops,
                       size_t weights, size_t available);

}  // namespace lorry
