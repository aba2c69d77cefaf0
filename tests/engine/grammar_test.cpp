// Requests with a grammar: what they are given, and that nobody else notices. The names of some are
// rows of the list of bad inputs, section D.
#include <cmath>
#include <set>

#include <gtest/gtest.h>

#include "base/json.h"
#include "engine/harness.h"

namespace lorry::test {
namespace {

constexpr const char* kModel = "mixtral-base";
constexpr const char* kSchema = R"({"type":"object","properties":{
    "name":{"enum":["ada","bo"]},"n":{"type":"integer","minimum":0,"maximum":999}},
    "required":["name","n"],"additionalProperties":false})";

class GrammarEngine : public testing::Test {
 protected:
  GrammarEngine() : tokenizer(Tokenizer::load(golden(std::string(kModel) + "/model"))) {}

  std::shared_ptr<const Grammar> grammar(GrammarKind kind, const std::string& text) const {
    return std::make_shared<const Grammar>(tokenizer, kind, text);
  }
  static EngineOptions options() { return golden_options(kModel, {"attn-r8", "experts-r8"}); }
  // Sampled, so that different seeds give different answers.
  static Request asking(std::shared_ptr<const Grammar> what, uint64_t seed, int32_t n = 60) {
    Request r = scored({{5, 6, 7, static_cast<int32_t>(seed % 90) + 10}, ""}, n);
    r.sampling.sample = true;
    r.sampling.seed = seed;
    r.grammar = std::move(what);
    return r;
  }
  std::string text_of(const Collector& answer) const { return tokenizer.decode(answer.ids()); }
  void expect_of_schema(const Collector& answer) const {
    const std::string text = text_of(answer);
    ASSERT_EQ(answer.finish->reason, FinishReason::eos_token) << text;
    const json::object object = parse_json(text, "answer").as_object();
    EXPECT_TRUE(object.at("name") == "ada" || object.at("name") == "bo") << text;
    EXPECT_LE(object.at("n").as_int64(), 999) << text;
  }

  const Tokenizer tokenizer;
};

TEST_F(GrammarEngine, D4_each_sample_has_a_matcher_of_its_own) {
  const auto schema = grammar(GrammarKind::json_schema, kSchema);
  TestEngine engine(options());
  std::vector<Request> requests;
  for (uint64_t seed = 0; seed < 24; ++seed) requests.push_back(asking(schema, seed, 200));
  std::set<std::string> texts;
  for (const auto& answer : engine.run(std::move(requests))) {
    expect_of_schema(*answer);
    texts.insert(text_of(*answer));
  }
  EXPECT_GT(texts.size(), 12U);
}

// With all that changes the scores, and what else a request may ask for.
TEST_F(GrammarEngine, penalties_bias_and_cuts_stay_within_the_grammar) {
  const auto schema = grammar(GrammarKind::json_schema, kSchema);
  TestEngine engine(options());
  std::vector<Request> requests;
  for (uint64_t seed = 0; seed < 12; ++seed) {
    Request r = asking(schema, seed, 200);
    r.ignore_eos = true;  // the grammar's end counts all the same
    r.adapter = seed % 2 == 0 ? "attn-r8" : "experts-r8";
    r.sampling.temperature = 0.1F + 0.5F * static_cast<float>(seed);
    r.sampling.top_k = static_cast<int32_t>(seed % 5);
    r.sampling.top_p = 0.9F;
    r.sampling.min_p = 0.05F;
    r.sampling.repetition_penalty = 1.3F;
    r.sampling.presence_penalty = 1.5F;
    r.sampling.raw_logprobs = seed % 3 == 0;
    for (int32_t id = 3; id < 60; ++id) r.sampling.logit_bias.emplace_back(id, 100.0F);
    requests.push_back(std::move(r));
  }
  for (const auto& answer : engine.run(std::move(requests))) {
    expect_of_schema(*answer);
    for (const SampledToken& token : answer->tokens) {
      EXPECT_LE(token.logprob, 1e-6F);
      EXPECT_GT(token.logprob, -200.0F);
    }
  }
}

// Of the tokens that are allowed, and summing to one over them.
TEST_F(GrammarEngine, logprobs_are_of_the_allowed_tokens) {
  TestEngine engine(options());
  Request r = asking(grammar(GrammarKind::regex, "[ab]{6}"), 1);
  r.sampling.logit_bias = {{*tokenizer.id_of("a"), 0.5F}};
  r.sampling.raw_logprobs = false;
  const auto answer = engine.run({r})[0];
  EXPECT_EQ(text_of(*answer).size(), 6U);
  for (const SampledToken& token : answer->tokens) {
    double sum = 0;
    for (const TokenProbability& p : token.alternatives) {
      sum += std::exp(static_cast<double>(p.logprob));
      if (p.id == tokenizer.eos_ids().front()) continue;
      const std::string_view piece = tokenizer.bytes(p.id);
      EXPECT_EQ(piece.find_first_not_of("ab"), std::string_view::npos) << piece;
    }
    EXPECT_NEAR(sum, 1.0, 1e-4);
  }
}

// Of a vocabulary that is larger than the model's: behind the letter only a token is allowed that
// the model has no score for.
TEST_F(GrammarEngine, D5_a_dead_end_ends_the_answer) {
  const Tokenizer larger = Tokenizer::load(golden("mixtral-sliding/model"));
  ASSERT_GT(larger.vocab_size(), tokenizer.vocab_size());
  const std::string text = "start: \"a\" <[" + std::to_string(larger.vocab_size() - 1) + "]>";
  Request r = asking(std::make_shared<const Grammar>(larger, GrammarKind::lark, text), 1);
  TestEngine engine(options());
  const auto answers = engine.run({r, asking(nullptr, 2, 30)});
  EXPECT_EQ(answers[0]->finish->reason, FinishReason::dead_end);
  EXPECT_EQ(answers[0]->tokens.size(), 1U);
  EXPECT_EQ(answers[1]->finish->reason, FinishReason::length);
}

TEST_F(GrammarEngine, D6_a_truncated_answer_is_length_with_its_text) {
  TestEngine engine(options());
  const auto answer = engine.run({asking(grammar(GrammarKind::json_schema, kSchema), 3, 4)})[0];
  EXPECT_EQ(answer->finish->reason, FinishReason::length);
  EXPECT_EQ(answer->ids().size(), 4U);
  EXPECT_TRUE(text_of(*answer).starts_with("{"));
}

// A grammar that needs more work than its limits in the middle of an answer.
TEST_F(GrammarEngine, D2_a_matcher_that_fails_ends_that_request_alone) {
  TestEngine engine(options());
  const auto hard = grammar(GrammarKind::regex, "x(a|b|c|d|e)*[ab](.|\\n){18}y");
  std::vector<Request> requests;
  for (uint64_t seed = 0; seed < 4; ++seed) {
    requests.push_back(asking(hard, seed, 200));
    requests.push_back(scored({{9, 8, static_cast<int32_t>(seed)}, "attn-r8"}, 60));
  }
  const std::vector<Request> copies = requests;
  const auto answers = engine.run(std::move(requests));
  for (size_t i = 0; i < answers.size(); i += 2) {
    const FinishEvent& finish = *answers[i]->finish;
    EXPECT_TRUE(finish.reason != FinishReason::failed ||
                !std::string(finish.error->what()).empty());
    EXPECT_EQ(answers[i + 1]->finish->reason, FinishReason::length);
    expect_equal_tokens(*answers[i + 1], *engine.run({copies[i + 1]})[0], "beside a hard grammar");
  }
}

TEST_F(GrammarEngine, mates_keep_their_bits_and_so_does_it) {
  const auto schema = grammar(GrammarKind::json_schema, kSchema);
  const auto words = grammar(GrammarKind::regex, "[a-z ]{30}");
  std::vector<Request> requests;
  for (uint64_t i = 0; i < 18; ++i) {
    Request r = asking(i % 3 == 0 ? schema : i % 3 == 1 ? words : nullptr, i, 80);
    if (i % 2 == 0) r.adapter = "experts-r8";
    requests.push_back(std::move(r));
  }
  expect_alone_decides(options(), requests);
}

// Greedy answers repeat, so drafts are kept: the matcher has to follow them.
TEST_F(GrammarEngine, drafts_obey_the_grammar) {
  const auto lines = grammar(GrammarKind::regex, "(abc abd\\n){12}");
  Request r = greedy_request({{5, 6, 7}, ""}, 200);
  r.grammar = lines;
  EngineOptions o = options();
  TestEngine plain(o);
  o.speculative_tokens = 6;
  TestEngine drafting(o);
  const auto want = plain.run({r})[0];
  const auto got = drafting.run({r})[0];
  expect_equal_tokens(*got, *want, "drafts");
  EXPECT_EQ(got->finish->reason, FinishReason::eos_token);
  EXPECT_EQ(text_of(*got).size(), 96U);
  EXPECT_GT(got->n_skipped, 4);
}

TEST_F(GrammarEngine, stop_texts_end_it_early) {
  TestEngine engine(options());
  Request r = asking(grammar(GrammarKind::regex, "[ab]{3}STOP[ab]{30}"), 1);
  r.stop = {"STOP"};
  const auto answer = engine.run({r})[0];
  EXPECT_EQ(answer->finish->reason, FinishReason::stop_sequence);
  EXPECT_EQ(text_of(*answer).substr(3, 4), "STOP");
}

}  // namespace
}  // namespace lorry::test
