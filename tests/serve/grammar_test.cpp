// What answers must match, over HTTP: response_format and its like. The names are rows of the list
// of bad inputs, sections B and D.
#include <thread>

#include "serve/grammar_cache.h"
#include "serve/lorax_test_base.h"
#include "serve/openai_test_base.h"

namespace lorry {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

// Whether the grammar of a request lets it say `text`, and end there.
bool admits(const Request& request, const Tokenizer& tokenizer, const std::string& text) {
  EncodeOptions plain;
  plain.add_special = false;
  Constraint constraint(*request.grammar);
  std::vector<uint32_t> words(static_cast<size_t>(tokenizer.vocab_size()) / 32 + 1);
  for (const int32_t id : tokenizer.encode(text, plain)) {
    constraint.mask(words);
    const auto i = static_cast<uint32_t>(id);
    if ((words[i / 32] >> (i % 32) & 1U) == 0) return false;
    constraint.commit(id);
  }
  return constraint.accepting();
}

constexpr const char* kObject =
    R"({"type":"object","properties":{"a":{"type":"integer"}},"required":["a"],)"
    R"("additionalProperties":false})";

TEST_F(Lorax, response_format_in_its_kinds) {
  const auto format = [&](const std::string& type, const std::string& schema) {
    return generate(R"({"response_format":{"type":")" + type + R"(","schema":)" + schema + "}}");
  };
  const Tokenizer& tokenizer = backend.tokenizer();
  for (const char* type : {"json_object", "json_schema"}) {
    ASSERT_EQ(format(type, kObject).status, 200);
    ASSERT_NE(backend.last().grammar, nullptr);
    EXPECT_TRUE(admits(backend.last(), tokenizer, R"({"a": 5})"));
    EXPECT_FALSE(admits(backend.last(), tokenizer, R"({"b": 5})"));
  }
  ASSERT_EQ(format("regex", R"("[0-9]+ hats")").status, 200);
  EXPECT_TRUE(admits(backend.last(), tokenizer, "12 hats"));
  EXPECT_FALSE(admits(backend.last(), tokenizer, "12 cats"));
  ASSERT_EQ(format("grammar", R"("start: \"x\" start | \"y\"")").status, 200);
  EXPECT_TRUE(admits(backend.last(), tokenizer, "xxy"));
  EXPECT_FALSE(admits(backend.last(), tokenizer, "xx"));
  ASSERT_EQ(generate(R"({"response_format":{"type":"json_object"}})").status, 200);
  EXPECT_TRUE(admits(backend.last(), tokenizer, R"({"any": [1, null]})"));
  EXPECT_FALSE(admits(backend.last(), tokenizer, "[1]"));
  for (const char* none :
       {R"({"response_format":{"type":"text"}})", R"({"response_format":null})"}) {
    ASSERT_EQ(generate(none).status, 200);
    EXPECT_EQ(backend.last().grammar, nullptr);
  }
}

TEST_F(OpenAi, response_format_as_openai_and_vllm_spell_it) {
  const Tokenizer& tokenizer = backend.tokenizer();
  const std::string schema = kObject;
  for (const std::string& field :
       {R"("response_format":{"type":"json_schema","json_schema":{"name":"n","strict":true,)"
        R"("description":"d","schema":)" +
            schema + "}}",
        R"("guided_json":)" + schema, R"("structured_outputs":{"json":)" + schema + "}"}) {
    ASSERT_EQ(chat("," + field).status, 200) << field;
    ASSERT_NE(backend.last().grammar, nullptr);
    EXPECT_TRUE(admits(backend.last(), tokenizer, R"({"a": 5})"));
    EXPECT_FALSE(admits(backend.last(), tokenizer, R"({"a": 5.5})"));
    ASSERT_EQ(complete("," + field).status, 200) << field;
    EXPECT_NE(backend.last().grammar, nullptr);
  }
  ASSERT_EQ(chat(R"(,"response_format":{"type":"json_object"})").status, 200);
  EXPECT_TRUE(admits(backend.last(), tokenizer, R"({"b": {}})"));
  ASSERT_EQ(chat(R"(,"guided_choice":["yes.","no (a|b)*"])").status, 200);
  EXPECT_TRUE(admits(backend.last(), tokenizer, "no (a|b)*"));
  EXPECT_TRUE(admits(backend.last(), tokenizer, "yes."));
  EXPECT_FALSE(admits(backend.last(), tokenizer, "yesx"));
  ASSERT_EQ(complete(R"(,"guided_regex":"a+")").status, 200);
  EXPECT_TRUE(admits(backend.last(), tokenizer, "aaa"));
}

TEST_F(OpenAi, B16_bad_answer_formats_are_400) {
  for (const char* format :
       {R"({"type":"sound"})", R"({"type":"json_schema"})", R"(7)", R"({})", R"({"type":5})",
        R"({"type":"json_schema","json_schema":123})",
        R"({"type":"json_schema","json_schema":{"name":"n"}})",
        R"({"type":"json_schema","json_schema":{"name":"n","schema":123}})",
        R"({"type":"json_schema","json_schema":{"name":"n","schema":{"type":"hiccup"}}})",
        R"({"type":"json_schema","json_schema":{"name":7,"schema":{}}})",
        R"({"type":"json_schema","json_schema":{"name":"n","strict":"yes","schema":{}}})",
        R"({"type":"json_object","schema":[1]})", R"({"type":"regex"})",
        R"({"type":"regex","schema":7})", R"({"type":"grammar","schema":""})"}) {
    const json::object error = error_of(chat(std::string(R"(,"response_format":)") + format));
    ASSERT_FALSE(error.empty()) << format;
    EXPECT_THAT(std::string(error.at("message").as_string()), HasSubstr("`response_format`"));
    EXPECT_EQ(error.at("param").as_string(), "response_format") << format;
  }
  EXPECT_TRUE(backend.submitted().empty());
  EXPECT_THAT(chat_refusal(R"(,"guided_grammar":"x")"), HasSubstr("`guided_grammar`"));
  EXPECT_THAT(chat_refusal(R"(,"structured_outputs":{"grammar":"x"})"), HasSubstr("grammar"));
  EXPECT_THAT(chat_refusal(R"(,"guided_choice":[])"), HasSubstr("`guided_choice`"));
  EXPECT_THAT(chat_refusal(R"(,"guided_regex":"a","response_format":{"type":"json_object"})"),
              AllOf(HasSubstr("guided_regex"), HasSubstr("response_format")));
}

TEST_F(Lorax, D1_invalid_grammars_are_refused_before_admission_and_not_repeated) {
  const auto asked = [](const std::string& type, const std::string& schema) {
    return R"({"response_format":{"type":")" + type + R"(","schema":)" + schema + "}}";
  };
  for (const std::string& bad :
       {asked("regex", R"("secret(word")"), asked("grammar", R"("start: secretword ~ \n x")"),
        asked("grammar", R"("nothing: \"secretword\"")"), asked("json_schema", R"("secretword")"),
        asked("json_schema", R"({"type":"secretword"})"),
        asked("json_schema", R"({"$ref":"#/$defs/gone"})"),
        asked("json_schema", R"({"type":"string","pattern":"secretword("})"),
        asked("regex", R"("[^\\s\\S]")")}) {
    const std::string text = refusal(bad);
    EXPECT_THAT(text, HasSubstr("`response_format`")) << bad;
    // The one word that is wrong in a schema may be named.
    if (bad.find("schema\":{") == std::string::npos) {
      EXPECT_THAT(text, Not(HasSubstr("secretword"))) << bad;
    }
    EXPECT_THAT(text, Not(HasSubstr("secret(word"))) << bad;
    EXPECT_LT(text.size(), 400U) << text;
    EXPECT_THAT(text, Not(HasSubstr("\n")));
  }
  EXPECT_TRUE(backend.submitted().empty());
  EXPECT_EQ(generate("{}").status, 200);
}

TEST_F(Lorax, D2_huge_and_recursive_grammars_are_refused_or_bounded_in_time) {
  std::string deep = R"({"type":"object"})";
  for (int i = 0; i < 25; ++i) deep = R"({"type":"array","items":)" + deep + "}";
  std::string wide;
  for (int i = 0; i < 20000; ++i) {
    wide += fmt::format("{}\"p{}\":{{\"type\":\"string\"}}", i > 0 ? "," : "", i);
  }
  wide = R"({"type":"object","properties":{)" + wide + "}}";
  const std::string chain = R"({"$ref":"#/$defs/a","$defs":{"a":{"$ref":"#/$defs/a"}}})";
  const auto begin = std::chrono::steady_clock::now();
  for (const std::string& schema :
       {deep, wide, chain, std::string(R"({"type":"string","maxLength":1000000})"),
        std::string(R"({"type":"array","items":{},"minItems":1000000})"),
        std::string(R"({"type":"string","pattern":"^(a{1,1000}){1,1000}$"})")}) {
    const Reply reply =
        generate(R"({"response_format":{"type":"json_schema","schema":)" + schema + "}}");
    EXPECT_TRUE(reply.status == 200 || reply.status == 422) << reply.status << reply.body;
  }
  for (const char* regex : {"(a?){1,1000000}", "((a{1,1000}){1,1000}){1,1000}", "(x+x+)+y"}) {
    const Reply reply =
        generate(fmt::format(R"({{"response_format":{{"type":"regex","schema":"{}"}}}})", regex));
    EXPECT_TRUE(reply.status == 200 || reply.status == 422) << regex << reply.body;
  }
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(60));
  EXPECT_EQ(generate("{}").status, 200);
}

TEST_F(OpenAi, D3_ten_thousand_schemas_stay_within_the_cache) {
  constexpr size_t kCapacity = size_t{8} << 20;
  GrammarCache cache(backend.tokenizer(), kCapacity);
  const auto schema = [](int i) {
    return GrammarText{
        GrammarKind::json_schema,
        fmt::format(R"({{"type":"object","properties":{{"p{}":{{"type":"null"}}}}}})", i)};
  };
  std::shared_ptr<const Grammar> first = cache.compiled(schema(0));
  EXPECT_EQ(cache.compiled(schema(0)), first);
  for (int i = 0; i < 10000; ++i) {
    cache.compiled(schema(i));
    ASSERT_LE(cache.bytes(), kCapacity);
    if (i % 5 == 0) {
      ASSERT_EQ(cache.compiled(schema(0)), first);  // used: kept
    }
  }
  EXPECT_GT(cache.size(), 10U);
  EXPECT_LT(cache.size(), 9000U);
  EXPECT_NE(cache.compiled(schema(0)), nullptr);
  EXPECT_THROW(cache.compiled({GrammarKind::regex, "("}), Error);
}

TEST_F(OpenAi, grammars_are_compiled_by_many_threads_at_once) {
  GrammarCache cache(backend.tokenizer(), size_t{1} << 20);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&cache, t] {
      for (int i = 0; i < 40; ++i) {
        const auto grammar =
            cache.compiled({GrammarKind::regex, fmt::format("[ab]{{{}}}", 1 + (i + t) % 10)});
        Constraint constraint(*grammar);
        std::vector<uint32_t> words(100);
        constraint.mask(words);
        EXPECT_NE(words, std::vector<uint32_t>(100));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_F(OpenAi, D4_all_samples_of_a_request_share_one_compiled_grammar) {
  chat(R"(,"n":3,"response_format":{"type":"json_object"})");
  const auto all = backend.submitted();
  ASSERT_EQ(all.size(), 3U);
  EXPECT_EQ(all[0].grammar, all[2].grammar);
  EXPECT_NE(all[0].grammar, nullptr);
}

TEST_F(Lorax, D5_a_dead_end_is_a_finish_reason) {
  backend.set_plan([](const Request&) {
    Script script;
    script.tokens = {token_event(70), token_event(71)};
    script.finish.reason = FinishReason::dead_end;
    return script;
  });
  EXPECT_THAT(generate(R"({"details":true,"response_format":{"type":"json_object"}})").body,
              HasSubstr(R"("finish_reason":"stop_sequence")"));
  const auto events = stream("/generate_stream", R"({"inputs":"a"})");
  EXPECT_THAT(events.back(), HasSubstr(R"("finish_reason":"stop_sequence")"));
  EXPECT_THAT(post("/v1/completions", R"({"prompt":"a"})").body,
              HasSubstr(R"("finish_reason":"stop")"));
}

TEST_F(OpenAi, D6_a_truncated_answer_is_length) {
  backend.set_plan([this](const Request& request) { return backend.say(R"({"a": 1})", request); });
  const Reply reply = chat(R"(,"max_tokens":2,"response_format":{"type":"json_object"})");
  EXPECT_THAT(reply.body, HasSubstr(R"("finish_reason":"length")"));
}

// Of a matcher that runs into its limits while it generates: the client's doing, so no 5xx.
TEST_F(OpenAi, a_grammar_that_fails_while_generating_is_400) {
  backend.set_plan([](const Request&) {
    return ScriptedBackend::failing(Code::invalid_argument, "the grammar cannot go on: too much");
  });
  EXPECT_THAT(message_of(chat()), HasSubstr("the grammar cannot go on"));
  EXPECT_EQ(post("/generate", R"({"inputs":"a"})").status, 424);
}

}  // namespace
}  // namespace lorry
