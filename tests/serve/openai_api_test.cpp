// OpenAI's routes: shapes, streams, stop text, log-probabilities, models.
#include <atomic>

#include "serve/openai_test_base.h"

namespace lorry {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

TEST_F(OpenAi, chat_answers_with_a_message) {
  const json::object reply = chat().json().as_object();
  EXPECT_TRUE(reply.at("id").as_string().starts_with("chatcmpl-"));
  EXPECT_EQ(reply.at("object").as_string(), "chat.completion");
  EXPECT_GT(reply.at("created").as_int64(), 1700000000);
  EXPECT_EQ(reply.at("model").as_string(), "tiny");
  const json::object choice = reply.at("choices").as_array()[0].as_object();
  EXPECT_EQ(choice.at("index").as_int64(), 0);
  EXPECT_EQ(choice.at("finish_reason").as_string(), "stop");
  EXPECT_TRUE(choice.at("logprobs").is_null());
  const json::object message = choice.at("message").as_object();
  EXPECT_EQ(message.at("role").as_string(), "assistant");
  EXPECT_EQ(message.at("content").as_string(), "Hello wörld 🙂");
  const json::object usage = reply.at("usage").as_object();
  EXPECT_EQ(usage.at("total_tokens").as_int64(),
            usage.at("prompt_tokens").as_int64() + usage.at("completion_tokens").as_int64());
  const Request request = backend.last();
  EXPECT_TRUE(request.sampling.sample);
  EXPECT_TRUE(request.sampling.raw_logprobs);
  EXPECT_EQ(request.prompt.front(), 3);  // the template's <|im_start|>
}

TEST_F(OpenAi, the_text_of_a_client_is_no_special_token) {
  post("/v1/chat/completions", R"({"messages":[{"role":"user","content":"<|im_end|></s>"}]})");
  const std::vector<int32_t> prompt = backend.last().prompt;
  EXPECT_EQ(std::count(prompt.begin(), prompt.end(), 2), 0);
  EXPECT_EQ(std::count(prompt.begin(), prompt.end(), 4), 1);  // the template's own
}

TEST_F(OpenAi, text_parts_are_joined) {
  post("/v1/chat/completions",
       R"({"messages":[{"role":"user","content":[{"type":"text","text":"a"},)"
       R"({"type":"text","text":"b"}]}]})");
  EXPECT_THAT(backend.tokenizer().decode(backend.last().prompt), HasSubstr("a\nb"));
}

TEST_F(OpenAi, chat_streams_chunks) {
  const Reply reply = chat(R"(,"stream":true,"stream_options":{"include_usage":true})");
  EXPECT_EQ(reply.headers.at("content-type"), "text/event-stream");
  const std::vector<std::string> events = events_of(reply.body);
  EXPECT_EQ(events.back(), "[DONE]");
  std::string text;
  std::string reasons;
  for (size_t i = 0; i + 2 < events.size(); ++i) {
    const json::object chunk = parse_json(events[i], "chunk").as_object();
    EXPECT_EQ(chunk.at("object").as_string(), "chat.completion.chunk");
    EXPECT_TRUE(chunk.at("usage").is_null());
    const json::object choice = chunk.at("choices").as_array()[0].as_object();
    const json::object delta = choice.at("delta").as_object();
    EXPECT_EQ(delta.contains("role"), i == 0);
    if (delta.contains("content")) text += std::string(delta.at("content").as_string());
    if (!choice.at("finish_reason").is_null()) {
      reasons += std::string(choice.at("finish_reason").as_string());
    }
  }
  EXPECT_EQ(text, "Hello wörld 🙂");
  EXPECT_EQ(reasons, "stop");
  const json::object usage = parse_json(events[events.size() - 2], "chunk").as_object();
  EXPECT_TRUE(usage.at("choices").as_array().empty());
  EXPECT_GT(usage.at("usage").as_object().at("completion_tokens").as_int64(), 3);
}

TEST_F(OpenAi, completions_answer_and_stream) {
  const json::object reply = complete(R"(,"max_tokens":100)").json().as_object();
  EXPECT_TRUE(reply.at("id").as_string().starts_with("cmpl-"));
  EXPECT_EQ(reply.at("object").as_string(), "text_completion");
  EXPECT_EQ(reply.at("choices").as_array()[0].as_object().at("text").as_string(), "Hello wörld 🙂");
  const auto events = events_of(complete(R"(,"stream":true,"max_tokens":100)").body);
  std::string text;
  for (size_t i = 0; i + 1 < events.size(); ++i) {
    text += std::string(parse_json(events[i], "chunk")
                            .as_object()
                            .at("choices")
                            .as_array()[0]
                            .as_object()
                            .at("text")
                            .as_string());
  }
  EXPECT_EQ(text, "Hello wörld 🙂");
  complete();
  EXPECT_EQ(backend.last().max_new_tokens, 16);
}

TEST_F(OpenAi, finish_reason_is_length_at_the_limit) {
  EXPECT_THAT(chat(R"(,"max_tokens":2)").body, HasSubstr(R"("finish_reason":"length")"));
  EXPECT_THAT(chat(R"(,"max_completion_tokens":2)").body, HasSubstr(R"("completion_tokens":2)"));
}

TEST_F(OpenAi, stop_text_is_cut) {
  say_until("one two STOP", "STOP");
  const Reply reply = chat(R"(,"stop":"STOP")");
  EXPECT_THAT(reply.body, HasSubstr(R"("content":"one two ")"));
  EXPECT_THAT(reply.body, HasSubstr(R"("finish_reason":"stop")"));
  const Reply stream = chat(R"(,"stop":["STOP"],"stream":true)");
  std::string text;
  for (const json::object& delta : deltas_of(stream.body)) {
    if (delta.contains("content")) text += std::string(delta.at("content").as_string());
  }
  EXPECT_EQ(text, "one two ");
}

TEST_F(OpenAi, what_only_began_like_a_stop_sequence_is_sent) {
  EXPECT_THAT(chat(R"(,"stop":"🙂!")").body, HasSubstr("Hello wörld 🙂"));
  const std::string stream = chat(R"(,"stop":"🙂!","stream":true)").body;
  EXPECT_THAT(stream, HasSubstr("🙂"));
}

TEST_F(OpenAi, the_text_of_stop_token_ids_is_cut) {
  backend.set_plan([this](const Request& request) {
    Script script = backend.say("ab", request);
    script.tokens.pop_back();
    script.finish.reason = FinishReason::stop_sequence;
    return script;
  });
  const int32_t last = backend
                           .say("ab",
                                [] {
                                  Request r;
                                  r.max_new_tokens = 99;
                                  return r;
                                }())
                           .tokens.end()[-2]
                           .token.id;
  const Reply reply = complete(",\"stop_token_ids\":[" + std::to_string(last) + "]");
  const std::string text(
      reply.json().as_object().at("choices").as_array()[0].as_object().at("text").as_string());
  EXPECT_EQ(text + std::string(backend.tokenizer().bytes(last)), "ab");
}

TEST_F(OpenAi, n_answers_and_several_prompts) {
  const json::object reply = complete(R"(,"n":2,"seed":5)", R"(["one","two"])").json().as_object();
  const json::array choices = reply.at("choices").as_array();
  EXPECT_EQ(choices.size(), 4U);
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(choices[i].as_object().at("index").as_int64(), static_cast<int64_t>(i));
  }
  const auto submitted = backend.submitted();
  EXPECT_EQ(submitted[0].sampling.seed, 5U);
  EXPECT_EQ(submitted[1].sampling.seed, 6U);
  EXPECT_EQ(submitted[0].prompt, submitted[1].prompt);
  EXPECT_NE(submitted[1].prompt, submitted[2].prompt);
  const std::string stream = chat(R"(,"n":2,"stream":true)").body;
  EXPECT_THAT(stream, AllOf(HasSubstr(R"("index":0)"), HasSubstr(R"("index":1)")));
}

TEST_F(OpenAi, best_of_keeps_the_most_probable) {
  std::atomic<int> count{0};
  backend.set_plan([&](const Request& request) {
    EXPECT_TRUE(request.sampling.logprobs);
    Script script;
    const int i = count++;
    script.tokens = {token_event(70 + i, -1.0F - static_cast<float>((i + 2) % 4))};
    script.finish.reason = FinishReason::length;
    return script;
  });
  const json::array choices =
      complete(R"(,"n":2,"best_of":4)").json().as_object().at("choices").as_array();
  ASSERT_EQ(choices.size(), 2U);
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(choices[i].as_object().at("index").as_int64(), static_cast<int64_t>(i));
    EXPECT_TRUE(choices[i].as_object().at("logprobs").is_null());
    EXPECT_EQ(choices[i].as_object().at("text").as_string(),
              backend.tokenizer().decode(std::vector<int32_t>{72 + static_cast<int32_t>(i)}));
  }
}

TEST_F(OpenAi, prompts_may_be_token_ids) {
  EXPECT_EQ(complete("", "[5,6,7]").status, 200);
  EXPECT_EQ(backend.last().prompt, (std::vector<int32_t>{5, 6, 7}));
  EXPECT_EQ(complete("", "[[5,6],[7]]").json().as_object().at("choices").as_array().size(), 2U);
}

TEST_F(OpenAi, echo_with_logprobs_as_lm_evaluation_harness_reads_them) {
  backend.set_plan([](const Request& request) {
    Script script;
    for (size_t i = 1; i < request.prompt.size(); ++i) {
      const int32_t id = request.prompt[i];
      script.prompt_tokens.push_back(token_event(id, -1.5F, {{id + 1, -0.5F}}));
    }
    script.tokens = {token_event(80, -0.25F, {{80, -0.25F}})};
    return script;
  });
  const json::object choice =
      complete(R"(,"max_tokens":1,"logprobs":1,"echo":true,"temperature":0,"seed":1)",
               "[[70,71,72]]")
          .json()
          .as_object()
          .at("choices")
          .as_array()[0]
          .as_object();
  EXPECT_TRUE(backend.last().prompt_logprobs);
  EXPECT_EQ(backend.last().sampling.alternatives, 1);
  EXPECT_FALSE(backend.last().sampling.sample);
  const json::object logprobs = choice.at("logprobs").as_object();
  const json::array chosen = logprobs.at("token_logprobs").as_array();
  EXPECT_EQ(chosen.size(), 4U);
  EXPECT_TRUE(chosen[0].is_null());
  EXPECT_EQ(chosen[1].as_double(), -1.5);
  EXPECT_EQ(chosen[3].as_double(), -0.25);
  const json::array top = logprobs.at("top_logprobs").as_array();
  EXPECT_TRUE(top[0].is_null());
  EXPECT_EQ(top[1].as_object().size(), 2U);  // the most probable and the chosen
  const json::array tokens = logprobs.at("tokens").as_array();
  EXPECT_EQ(top[3].as_object().at(tokens[3].as_string()).as_double(), -0.25);
  EXPECT_EQ(top[3].as_object().size(), 1U);
  EXPECT_EQ(logprobs.at("text_offset").as_array()[0].as_int64(), 0);
  EXPECT_TRUE(std::string(choice.at("text").as_string())
                  .starts_with(backend.tokenizer().decode(std::vector<int32_t>{70, 71, 72})));
}

TEST_F(OpenAi, chat_logprobs) {
  backend.set_plan([](const Request&) {
    Script script;
    script.tokens = {token_event(80, -0.25F, {{80, -0.25F}, {81, -2.0F}})};
    return script;
  });
  const json::array content = chat(R"(,"logprobs":true,"top_logprobs":2)")
                                  .json()
                                  .as_object()
                                  .at("choices")
                                  .as_array()[0]
                                  .as_object()
                                  .at("logprobs")
                                  .as_object()
                                  .at("content")
                                  .as_array();
  EXPECT_EQ(content.size(), 1U);
  EXPECT_EQ(content[0].as_object().at("logprob").as_double(), -0.25);
  EXPECT_FALSE(content[0].as_object().at("bytes").as_array().empty());
  EXPECT_EQ(content[0].as_object().at("top_logprobs").as_array().size(), 2U);
  EXPECT_THAT(chat(R"(,"logprobs":true,"stream":true)").body, HasSubstr(R"("logprob":-0.25)"));
}

TEST_F(OpenAi, model_names_the_adapter) {
  for (const char* base : {"tiny", ""}) {
    chat(std::string(R"(,"model":")") + base + "\"");
    EXPECT_EQ(backend.last().adapter.label(), "");
  }
  EXPECT_THAT(chat(R"(,"model":"pirate")").body, HasSubstr(R"("model":"pirate")"));
  EXPECT_EQ(backend.last().adapter.label(), "pirate");
}

TEST_F(OpenAi, merges_and_sources_are_passed_on) {
  options.adapters.sources.push_back(AdapterSource::hub);
  chat(R"(,"merged_adapters":{"ids":["a","b"]},"adapter_source":"hub")");
  EXPECT_EQ(backend.last().adapter.label(), "linear(a*1,b*1)");
  EXPECT_EQ(backend.last().adapter.parts.at(1).source, AdapterSource::hub);
  EXPECT_EQ(backend.last().adapter.parts.at(1).api_token, "");
  EXPECT_THAT(chat_refusal(R"(,"model":"a","adapters":[{"id":"b"}])"), HasSubstr("at most one"));
}

TEST_F(OpenAi, B20_an_unknown_model_is_404) {
  backend.set_plan(
      [](const Request&) { return ScriptedBackend::failing(Code::not_found, "no such adapter"); });
  const json::object error = error_of(chat(R"(,"model":"nobody")"), 404);
  EXPECT_EQ(error.at("code").as_string(), "model_not_found");
  EXPECT_EQ(error.at("message").as_string(), "no such adapter");
  EXPECT_THAT(chat_refusal(R"(,"model":"../../x")"), HasSubstr("adapter"));
}

TEST_F(OpenAi, an_adapter_that_cannot_be_loaded_is_400) {
  backend.set_plan([](const Request&) { return ScriptedBackend::failing(Code::bad_file, "r=0"); });
  EXPECT_EQ(message_of(chat(R"(,"model":"broken","stream":true)")), "r=0");
}

TEST_F(OpenAi, a_failure_inside_a_stream_is_an_event_and_done) {
  backend.set_round(std::chrono::milliseconds(20));
  backend.set_plan([](const Request&) {
    Script script = ScriptedBackend::failing(Code::internal, "NaN");
    script.tokens = {token_event(70)};
    return script;
  });
  const auto events = events_of(chat(R"(,"stream":true)").body);
  ASSERT_GE(events.size(), 3U);
  EXPECT_EQ(events.back(), "[DONE]");
  EXPECT_THAT(events[events.size() - 2], HasSubstr(R"("type":"server_error")"));
  EXPECT_EQ(message_of(complete(), 500), "NaN");
}

TEST_F(OpenAi, models_are_listed_with_their_parent) {
  AdapterSnapshot snapshot;
  snapshot.entries.resize(3);
  snapshot.entries[0].name = "org/pirate";
  snapshot.entries[0].registered = true;
  snapshot.entries[1].name = "poet";
  snapshot.entries[1].state = AdapterState::device;
  snapshot.entries[2].name = "broken";
  snapshot.entries[2].state = AdapterState::failed;
  backend.set_adapters(snapshot);
  const json::object reply = get("/v1/models").json().as_object();
  const json::array data = reply.at("data").as_array();
  EXPECT_EQ(reply.at("object").as_string(), "list");
  ASSERT_EQ(data.size(), 3U);
  EXPECT_EQ(data[0].as_object().at("id").as_string(), "tiny");
  EXPECT_TRUE(data[0].as_object().at("parent").is_null());
  EXPECT_EQ(data[1].as_object().at("parent").as_string(), "tiny");
  EXPECT_EQ(get("/v1/models/tiny").status, 200);
  EXPECT_EQ(get("/v1/models/org/pirate").status, 200);
  EXPECT_EQ(get("/v1/models/org%2Fpirate").status, 200);
  EXPECT_EQ(error_of(get("/v1/models/broken"), 404).at("code").as_string(), "model_not_found");
}

TEST_F(OpenAi, an_aborted_answer_says_so) {
  EXPECT_THAT(chat().body, Not(HasSubstr("abort")));
  backend.set_plan([](const Request&) {
    Script script;
    script.tokens = {token_event(70)};
    script.finish.reason = FinishReason::cancelled;
    return script;
  });
  EXPECT_THAT(chat().body, HasSubstr(R"("finish_reason":"abort")"));
}

}  // namespace
}  // namespace lorry
