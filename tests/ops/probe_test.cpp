// What the processor can do, measured.
#include "ops/cpu/probe.h"

#include <gtest/gtest.h>

#include "ops/cpu/cpu_ops.h"

namespace lorry::test {
namespace {

TEST(Probe, measures_something) {
  ThreadPool pool(2);
  const Probe probe = probe_machine(pool);
  EXPECT_GT(probe.bf16_gflops, 0.1);
  EXPECT_GT(probe.read_gb_s, 0.1);
  EXPECT_EQ(probe.int8_gops > 0.1, best_isa() >= Isa::avx512);
}

}  // namespace
}  // namespace lorry::test
