// What OpenAI's routes refuse; the names are rows of the list of bad inputs, section B.
#include "serve/openai_test_base.h"

namespace lorry {
namespace {

using testing::AllOf;
using testing::HasSubstr;

TEST_F(OpenAi, I1_a_full_engine_is_429) {
  backend.set_capacity(0);
  const Reply reply = chat();
  EXPECT_EQ(error_of(reply, 429).at("code").as_string(), "rate_limit_exceeded");
  EXPECT_EQ(reply.headers.count("retry-after"), 1U);
}

TEST_F(OpenAi, B1_to_B5_bad_json_and_kinds_are_400) {
  for (const char* body : {"", "[]", "\"x\"", "null", "{", "{} x", "{\"a\":\"\xff\"}"}) {
    EXPECT_EQ(post("/v1/chat/completions", body).status, 400) << body;
    EXPECT_EQ(post("/v1/completions", body).status, 400) << body;
  }
  EXPECT_THAT(chat_refusal(R"(,"max_tokens":1.5)"), HasSubstr("`max_tokens` must be an integer"));
  EXPECT_THAT(chat_refusal(R"(,"max_tokens":-1)"), HasSubstr("`max_tokens` must be >= 1"));
  EXPECT_THAT(chat_refusal(R"(,"n":-1)"), HasSubstr("`n`"));
  EXPECT_THAT(chat_refusal(R"(,"n":129)"), HasSubstr("`n`"));
  EXPECT_THAT(chat_refusal(R"(,"top_k":-1)"), HasSubstr("`top_k`"));
  EXPECT_THAT(chat_refusal(R"(,"seed":-1)"), HasSubstr("`seed`"));
  EXPECT_THAT(chat_refusal(R"(,"temperature":"hot")"), HasSubstr("`temperature`"));
  EXPECT_THAT(chat_refusal(R"(,"temperature":-1)"), HasSubstr("`temperature`"));
  EXPECT_EQ(error_of(chat(R"(,"top_p":7)")).at("param").as_string(), "top_p");
  EXPECT_EQ(chat(R"(,"top_p":1,"temperature":0,"top_k":0)").status, 200);
}

TEST_F(OpenAi, B7_empty_prompts_are_400) {
  for (const char* prompt : {"\"\"", "[]", "[\"\"]", "[[]]", "null", "7", "{}", "[true]"}) {
    EXPECT_THAT(message_of(complete("", prompt)), HasSubstr("prompt")) << prompt;
  }
}

TEST_F(OpenAi, B8_too_long_is_context_length_exceeded_with_both_numbers) {
  std::string text;
  for (int i = 0; i < 300; ++i) text += " 7";
  json::object error = error_of(complete("", "\"" + text + "\""));
  EXPECT_EQ(error.at("code").as_string(), "context_length_exceeded");
  EXPECT_THAT(std::string(error.at("message").as_string()), HasSubstr("256 tokens"));
  error = error_of(complete(R"(,"max_tokens":300)", "[5,6]"));
  EXPECT_THAT(std::string(error.at("message").as_string()),
              AllOf(HasSubstr("maximum context length is 256"), HasSubstr("302 tokens")));
}

TEST_F(OpenAi, B9_B10_ids_out_of_the_vocabulary) {
  EXPECT_THAT(message_of(complete("", "[5,100000]")), HasSubstr("out of vocabulary"));
  EXPECT_THAT(message_of(complete("", "[-1]")), HasSubstr("out of vocabulary"));
  EXPECT_THAT(message_of(complete("", "[1.5]")), HasSubstr("not a token id"));
  EXPECT_THAT(chat_refusal(R"(,"logit_bias":{"100000":1})"), HasSubstr("out of vocabulary"));
  EXPECT_THAT(chat_refusal(R"(,"logit_bias":{"a":1})"), HasSubstr("not a token id"));
  EXPECT_THAT(chat_refusal(R"(,"logit_bias":{"5":101})"), HasSubstr("-100"));
  EXPECT_THAT(chat_refusal(R"(,"stop_token_ids":[99999])"), HasSubstr("out of vocabulary"));
  std::string many;
  for (int i = 0; i < 2000; ++i) many += (i > 0 ? ",\"" : "\"") + std::to_string(i) + "\":1";
  EXPECT_THAT(chat_refusal(",\"logit_bias\":{" + many + "}"), HasSubstr("up to 1024"));
  EXPECT_EQ(chat(R"(,"logit_bias":{"5":-100})").status, 200);
  EXPECT_EQ(backend.last().sampling.logit_bias.size(), 1U);
}

TEST_F(OpenAi, B11_B13_stop_and_logprobs) {
  EXPECT_THAT(chat_refusal(R"(,"stop":["a","b","c","d","e"])"), HasSubstr("up to 4"));
  EXPECT_THAT(chat_refusal(R"(,"stop":"")"), HasSubstr("cannot be empty"));
  EXPECT_THAT(chat_refusal(R"(,"top_logprobs":2)"), HasSubstr("needs `logprobs`"));
  EXPECT_THAT(chat_refusal(R"(,"logprobs":true,"top_logprobs":21)"), HasSubstr("<= 20"));
  EXPECT_THAT(message_of(complete(R"(,"logprobs":21)")), HasSubstr("<= 20"));
}

TEST_F(OpenAi, B15_bad_messages_are_400) {
  for (const char* messages :
       {"null", "\"string\"", "[123]", "[{}]", "[]", R"([{"role":123,"content":"a"}])",
        R"([{"role":"user","content":123}])", R"([{"role":"user"}])",
        R"([{"role":"wizard","content":"a"}])", R"([{"role":"user","content":[1]}])",
        R"([{"role":"user","content":[{"type":"text"}]}])",
        R"([{"role":"assistant","content":null,"tool_calls":[{"id":"1"}]}])"}) {
    EXPECT_THAT(messages_refusal(messages), HasSubstr("messages")) << messages;
  }
  EXPECT_EQ(post("/v1/chat/completions", R"({"messages":[{"role":"assistant","content":"a"},)"
                                         R"({"role":"assistant","content":"b"}]})")
                .status,
            200);
}

TEST_F(OpenAi, B16_B19_known_fields_that_are_not_supported_are_named) {
  for (const char* field :
       {R"("tools":[{"type":"function"}])", R"("tool_choice":"required")", R"("functions":[{}])",
        R"("modalities":["audio"])", R"("store":true)", R"("reasoning_effort":"high")",
        R"("chat_template":"x")", R"("service_tier":"flex")",
        R"("response_format":{"type":"sound"})", R"("response_format":7)",
        R"("guided_grammar":"x")", R"("moderation":{"model":"x"})",
        R"("prompt_cache_retention":"24h")", R"("prompt_cache_options":{"x":1})",
        R"("stream_options":{"include_obfuscation":true})"}) {
    const std::string text(field);
    const std::string name = text.substr(1, text.find('"', 1) - 1);
    EXPECT_THAT(chat_refusal("," + text), HasSubstr("`" + name)) << field;
  }
  EXPECT_THAT(message_of(complete(R"(,"suffix":"x")")), HasSubstr("`suffix`"));
  EXPECT_THAT(message_of(complete(R"(,"best_of":1,"n":2)")), HasSubstr("`best_of`"));
  EXPECT_THAT(message_of(complete(R"(,"best_of":3,"stream":true)")), HasSubstr("`best_of`"));
  EXPECT_EQ(chat(R"(,"tools":[],"tool_choice":"none","store":false,"user":"u",)"
                 R"("response_format":{"type":"text"},"parallel_tool_calls":true)")
                .status,
            200);
}

TEST_F(OpenAi, B17_too_many_prompts) {
  std::string prompts;
  for (int i = 0; i < 100000; ++i) prompts += i > 0 ? ",\"a\"" : "\"a\"";
  EXPECT_THAT(message_of(complete("", "[" + prompts + "]")), HasSubstr("100000"));
  EXPECT_THAT(message_of(complete(R"(,"n":100)", R"(["a","b"])")), HasSubstr("100"));
}

TEST_F(OpenAi, B21_other_modalities_are_refused) {
  EXPECT_THAT(messages_refusal(R"([{"role":"user","content":[{"type":"image_url","image_url":)"
                               R"({"url":"file:///etc/passwd"}}]}])"),
              HasSubstr("modality not supported"));
}

}  // namespace
}  // namespace lorry
