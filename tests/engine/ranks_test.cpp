// One model over several ranks: every golden case, adapters included, on 1, 2, 3, 4 and 8.
#include <cstring>

#include "engine/golden_cases.h"
#include "engine/ranks.h"

namespace lorry::test {
namespace {

class Ranks : public testing::TestWithParam<std::tuple<std::string, int>> {
 protected:
  static std::string name() { return std::get<0>(GetParam()); }
  static int count() { return std::get<1>(GetParam()); }
};

void expect_equal(const std::vector<std::shared_ptr<Collector>>& a,
                  const std::vector<std::shared_ptr<Collector>>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    ASSERT_EQ(a[i]->logits.size(), b[i]->logits.size());
    EXPECT_EQ(std::memcmp(a[i]->logits.data(), b[i]->logits.data(),
                          a[i]->logits.size() * sizeof(float)),
              0)
        << i;
  }
}

// Leader::forward aborts where a rank chose other experts.
TEST_P(Ranks, golden_logits_as_one_mixed_batch_with_equal_bits_twice) {
  const GoldenCase c(name());
  std::vector<std::shared_ptr<Collector>> first;
  for (int round = 0; round < 2; ++round) {
    RankedEngine engine(c.options(Dtype::f32), count());
    const auto got = engine->run(logits_requests(c));
    expect_golden(c, Dtype::f32, got);
    round == 0 ? void(first = got) : expect_equal(first, got);
  }
}

TEST_P(Ranks, golden_logits_with_whole_experts) {
  const GoldenCase c(name());
  EngineOptions o = c.options(Dtype::f32);
  o.expert_parallel = true;
  RankedEngine engine(o, std::min(count(), 4));  // a golden model has at least four experts
  expect_golden(c, Dtype::f32, engine->run(logits_requests(c)));
}

INSTANTIATE_TEST_SUITE_P(Cases, Ranks,
                         testing::Combine(testing::ValuesIn(kGoldenCases),
                                          testing::Values(1, 2, 3, 4, 8)),
                         [](const auto& p) {
                           return test_name(std::get<0>(p.param)) + "_on_" +
                                  std::to_string(std::get<1>(p.param));
                         });

}  // namespace
}  // namespace lorry::test
