// Logits and greedy texts against transformers and PEFT, for every case, prompt and adapter.
#include "engine/golden_cases.h"

namespace lorry::test {
namespace {

class Golden : public testing::TestWithParam<std::tuple<std::string, GoldenMode>> {
 protected:
  static const GoldenMode& mode() { return std::get<1>(GetParam()); }
  static EngineOptions options(const GoldenCase& c) {
    EngineOptions o = c.options(mode().dtype);
    o.kv_format = mode().kv;
    return o;
  }
};

TEST_P(Golden, logits_as_one_mixed_batch) {
  const GoldenCase c(std::get<0>(GetParam()));
  TestEngine engine(options(c));
  expect_golden(c, mode(), engine.run(logits_requests(c)));
}

TEST_P(Golden, a_prompt_alone_has_the_bits_of_the_mixed_batch) {
  const GoldenCase c(std::get<0>(GetParam()));
  TestEngine engine(options(c));
  const auto mixed = engine.run(logits_requests(c));
  for (size_t i = 0; i < mixed.size(); ++i) {
    const auto alone = engine.run({logits_request(c.runs[i].prompt)})[0];
    EXPECT_FALSE(alone->logits.empty());
    EXPECT_TRUE(alone->logits == mixed[i]->logits) << c.name << "/" << c.runs[i].adapter;
  }
}

// Up to the first step that is a near tie, of tokens or of experts.
TEST_P(Golden, greedy_tokens_as_one_mixed_batch) {
  const GoldenCase c(std::get<0>(GetParam()));
  const bool exact = mode().part == 0;
  const double margin = exact ? 1e-3 : 0.2;
  const double gap = exact ? 1e-3 : 0.1;
  TestEngine engine(options(c));
  std::vector<Request> requests;
  for (const GoldenRun& r : c.runs) {
    requests.push_back(greedy_request(r.prompt, static_cast<int32_t>(r.generated.size())));
  }
  const auto got = engine.run(std::move(requests));
  int64_t compared = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    const GoldenRun& run = c.runs[i];
    ASSERT_EQ(got[i]->tokens.size(), run.generated.size()) << run.adapter;
    for (size_t k = 0; k < run.generated.size(); ++k) {
      if (run.margins[k] < margin || run.router_gaps[k] < gap) break;
      EXPECT_EQ(got[i]->tokens[k].id, run.generated[k]) << c.name << "/" << run.adapter << " " << k;
      ++compared;
    }
  }
  EXPECT_GT(compared, 0);
}

INSTANTIATE_TEST_SUITE_P(Cases, Golden,
                         testing::Combine(testing::ValuesIn(kGoldenCases),
                                          testing::ValuesIn(kGoldenModes)),
                         [](const auto& p) {
                           return test_name(std::get<0>(p.param)) + "_" + std::get<1>(p.param).name;
                         });

}  // namespace
}  // namespace lorry::test
