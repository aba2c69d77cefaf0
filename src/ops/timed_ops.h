// An Ops that measures how long each kind of operation of a step takes, and forwards to another.
// For `lorry bench`.
#pragma once
#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string_view>

#include "ops/ops.h"

namespace lorry {

// Nanoseconds since the start. linear: with what adapters and activations add to it where that is
// one operation. The thread that calls the operations writes, any thread may read.
struct OpTimes {
  enum Op : uint8_t { embed, norm, linear, adapt, rope, attention, route, glu, add, count };
  static std::string_view name(Op op);

  std::array<std::atomic<int64_t>, count> ns{};
  int64_t total() const;
};

// Requires: `times` outlives the result.
std::unique_ptr<Ops> make_timed_ops(std::unique_ptr<Ops> ops, OpTimes& times);

}  // namespace lorry
