// A model on two NUMA nodes, which are parts of this machine's CPUs.
#include <gtest/gtest.h>

#include "base/page_policy.h"
#include "engine/harness.h"
#include "engine/loaded_model.h"

namespace lorry::test {
namespace {

TEST(NumaEngine, PlacesWeightsAndSpreadsTheRest) {
  if (!refusal().empty()) GTEST_SKIP() << refusal();
  Log log({LogLevel::error});
  for (const int nodes : {1, 2}) {
    EngineOptions o = golden_options("mixtral-base", {});
    o.device = "cpu";
    o.topology = fake_nodes(nodes);
    const auto model = load_model(o, log);
    EXPECT_EQ(model->info.numa_nodes, nodes);
    const ModelWeights& w = model->lm->weights();
    const int placed = nodes == 1 ? MPOL_DEFAULT : MPOL_PREFERRED;
    const int spread = nodes == 1 ? MPOL_DEFAULT : MPOL_INTERLEAVE;
    EXPECT_EQ(policy_of(w.layers[0].gate_up.w.data), placed);
    EXPECT_EQ(policy_of(w.head.w.data), placed);
    EXPECT_EQ(policy_of(w.embed.data), spread);
    for (const KvLayer& layer : model->layers) {
      EXPECT_EQ(policy_of(layer.k.data), spread);
      EXPECT_EQ(policy_of(layer.v.data), spread);
    }
  }
}

// The engine's thread is one of them while it runs, and no thread of others is.
TEST(NumaEngine, LeavesTheCallersThreadAlone) {
  const std::vector<int> before = usable_cpus();
  EngineOptions o = golden_options("mixtral-base", {"attn-r8"});
  o.topology = fake_nodes(2);
  TestEngine engine(o);
  const auto answer = engine.run({greedy_request({{1, 2, 3}, "attn-r8"}, 8)})[0];
  EXPECT_EQ(answer->finish->reason, FinishReason::length);
  EXPECT_EQ(usable_cpus(), before);
}

}  // namespace
}  // namespace lorry::test
