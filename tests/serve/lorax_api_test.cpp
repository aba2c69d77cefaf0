// LoRAX's routes: shapes, the parameters of the contract, refusals in LoRAX's words.
#include "serve/lorax_test_base.h"

namespace lorry {
namespace {

using testing::HasSubstr;
using testing::Not;

TEST_F(Lorax, generate_answers_with_the_text) {
  const Reply reply = generate("{}");
  EXPECT_EQ(reply.status, 200);
  EXPECT_EQ(reply.body, R"({"generated_text":"Hello wörld 🙂"})");
  EXPECT_EQ(reply.headers.at("content-type"), "application/json");
  for (const char* header :
       {"x-compute-type", "x-compute-time", "x-compute-characters", "x-total-time",
        "x-prompt-tokens", "x-generated-tokens", "x-skipped-tokens", "x-total-tokens",
        "x-validation-time", "x-queue-time", "x-inference-time", "x-time-per-token",
        "x-time-to-first-token", "x-time-per-output-token", "x-model-id", "x-request-id"}) {
    EXPECT_EQ(reply.headers.count(header), 1U) << header;
  }
  EXPECT_EQ(reply.headers.at("x-compute-characters"), "10");
  EXPECT_EQ(reply.headers.at("x-inference-time"), "6");
  EXPECT_EQ(reply.headers.count("x-adapter-id"), 0U);
}

TEST_F(Lorax, the_compatible_form_answers_with_an_array_or_a_stream) {
  EXPECT_EQ(post("/", R"({"inputs":"a"})").body, R"([{"generated_text":"Hello wörld 🙂"}])");
  EXPECT_EQ(post("/invocations", R"({"inputs":"a","stream":false})").body,
            R"([{"generated_text":"Hello wörld 🙂"}])");
  const Reply stream = post("/", R"({"inputs":"a","stream":true})");
  EXPECT_EQ(stream.headers.at("content-type"), "text/event-stream");
  EXPECT_GT(events_of(stream.body).size(), 3U);
}

TEST_F(Lorax, details_hold_tokens_and_reason) {
  const json::object details = generate(R"({"details":true,"max_new_tokens":3})")
                                   .json()
                                   .as_object()
                                   .at("details")
                                   .as_object();
  EXPECT_EQ(details.at("finish_reason").as_string(), "length");
  EXPECT_EQ(details.at("generated_tokens").as_int64(), 3);
  EXPECT_EQ(details.at("skipped_tokens").as_int64(), 0);
  EXPECT_TRUE(details.at("seed").is_null());
  EXPECT_TRUE(details.at("prefill").as_array().empty());
  EXPECT_EQ(details.at("tokens").as_array().size(), 3U);
  const json::object token = details.at("tokens").as_array()[0].as_object();
  EXPECT_TRUE(token.at("id").is_int64());
  EXPECT_EQ(token.at("logprob").as_double(), -0.5);
  EXPECT_FALSE(token.at("special").as_bool());
  EXPECT_FALSE(token.at("skipped").as_bool());
}

TEST_F(Lorax, kept_drafts_are_told_as_skipped_tokens) {
  backend.set_plan([&](const Request& request) {
    Script script = backend.say("one two", request);
    script.tokens[1].skipped = true;
    script.finish.skipped_tokens = 1;
    return script;
  });
  const Reply reply = generate(R"({"details":true,"best_of":2,"do_sample":true})");
  EXPECT_EQ(reply.headers.at("x-skipped-tokens"), "2");  // of both answers
  const json::object details = reply.json().as_object().at("details").as_object();
  EXPECT_EQ(details.at("skipped_tokens").as_int64(), 1);
  const json::array tokens = details.at("tokens").as_array();
  EXPECT_FALSE(tokens[0].at("skipped").as_bool());
  EXPECT_TRUE(tokens[1].at("skipped").as_bool());
  EXPECT_THAT(get("/metrics").body, HasSubstr("lorax_request_skipped_tokens_sum 2"));
}

TEST_F(Lorax, decoder_input_details_hold_the_prompt) {
  backend.set_plan([&](const Request& request) {
    Script script = backend.say("x", request);
    for (size_t i = 1; i < request.prompt.size(); ++i) {
      script.prompt_tokens.push_back(token_event(request.prompt[i], -1.25F));
    }
    return script;
  });
  const json::object details =
      generate(R"({"decoder_input_details":true})").json().as_object().at("details").as_object();
  EXPECT_TRUE(backend.last().prompt_logprobs);
  const json::array prefill = details.at("prefill").as_array();
  EXPECT_EQ(prefill.size(), backend.last().prompt.size());
  EXPECT_TRUE(prefill[0].as_object().at("logprob").is_null());
  EXPECT_EQ(prefill[1].as_object().at("logprob").as_double(), -1.25);
  EXPECT_EQ(details.at("finish_reason").as_string(), "eos_token");
}

TEST_F(Lorax, alternatives_are_told) {
  backend.set_plan([&](const Request&) {
    Script script;
    script.tokens = {token_event(70, -0.1F, {{70, -0.1F}, {71, -2.0F}})};
    return script;
  });
  const std::string body = generate(R"({"details":true,"return_k_alternatives":2})").body;
  EXPECT_EQ(backend.last().sampling.alternatives, 2);
  EXPECT_THAT(body, HasSubstr(R"("alternative_tokens":[{"id":70,)"));
}

TEST_F(Lorax, the_stream_ends_with_the_text_and_no_done) {
  const Reply reply = post("/generate_stream", R"({"inputs":"a"})");
  EXPECT_EQ(reply.headers.at("x-accel-buffering"), "no");
  EXPECT_EQ(reply.headers.at("content-type"), "text/event-stream");
  const std::vector<std::string> events = events_of(reply.body);
  std::string joined;
  for (size_t i = 0; i < events.size(); ++i) {
    const json::object event = parse_json(events[i], "event").as_object();
    const json::object token = event.at("token").as_object();
    if (!token.at("special").as_bool()) joined += std::string(token.at("text").as_string());
    const bool last = i + 1 == events.size();
    EXPECT_EQ(event.at("generated_text").is_null(), !last);
    EXPECT_EQ(event.at("details").is_null(), !last);
  }
  EXPECT_EQ(joined, "Hello wörld 🙂");
  const json::object last = parse_json(events.back(), "event").as_object();
  EXPECT_EQ(last.at("generated_text").as_string(), "Hello wörld 🙂");
  EXPECT_EQ(last.at("details").as_object().at("finish_reason").as_string(), "eos_token");
  EXPECT_THAT(reply.body, Not(HasSubstr("[DONE]")));
}

TEST_F(Lorax, the_stream_never_splits_a_character) {
  for (const std::string& event : stream("/generate_stream", R"({"inputs":"a"})")) {
    EXPECT_THAT(event, Not(HasSubstr("\xEF\xBF\xBD")));
    EXPECT_NO_THROW(parse_json(event, "event"));  // strict UTF-8
  }
}

TEST_F(Lorax, stop_text_is_kept) {
  backend.set_plan([&](const Request& request) {
    Script script = backend.say("one STOP", request);
    script.tokens.pop_back();
    script.finish.reason = FinishReason::stop_sequence;
    script.finish.stop_sequence = "STOP";
    return script;
  });
  const json::object reply = generate(R"({"stop":["STOP"],"details":true})").json().as_object();
  EXPECT_EQ(reply.at("generated_text").as_string(), "one STOP");
  EXPECT_EQ(reply.at("details").as_object().at("finish_reason").as_string(), "stop_sequence");
  EXPECT_EQ(backend.last().stop, std::vector<std::string>{"STOP"});
  const auto events =
      stream("/generate_stream", R"({"inputs":"a","parameters":{"stop":["STOP"]}})");
  EXPECT_THAT(events.back(), HasSubstr(R"("generated_text":"one STOP")"));
}

TEST_F(Lorax, a_token_without_text_that_ends_an_answer_is_told_once) {
  backend.set_plan([&](const Request& request) {
    Script script = backend.say("🙂", request);
    script.tokens.resize(1);  // its first bytes: no text yet
    script.finish.reason = FinishReason::stop_sequence;
    return script;
  });
  const auto events =
      stream("/generate_stream", R"({"inputs":"a","parameters":{"stop":["STOP"]}})");
  ASSERT_EQ(events.size(), 1U);
  EXPECT_THAT(events.back(), HasSubstr("stop_sequence"));
}

TEST_F(Lorax, full_text_truncate_and_chat_template) {
  EXPECT_THAT(generate(R"({"return_full_text":true})").body,
              HasSubstr(R"("generated_text":"My name isHello)"));
  generate(R"({"truncate":2})");
  EXPECT_EQ(backend.last().prompt.size(), 2U);
  generate(R"({"apply_chat_template":true})");
  EXPECT_EQ(backend.last().prompt.front(), 3);  // <|im_start|>
}

TEST_F(Lorax, sampling_follows_the_parameters) {
  generate("{}");
  EXPECT_FALSE(backend.last().sampling.sample);
  EXPECT_FALSE(backend.last().sampling.raw_logprobs);
  for (const char* parameters : {R"({"do_sample":true})", R"({"top_k":5})", R"({"top_p":0.5})",
                                 R"({"typical_p":0.5})", R"({"temperature":0.7})"}) {
    generate(parameters);
    EXPECT_TRUE(backend.last().sampling.sample) << parameters;
  }
  for (const char* parameters : {R"({"temperature":1.0})", R"({"temperature":0,"do_sample":true})",
                                 R"({"top_p":1.0})", R"({"repetition_penalty":1.3})"}) {
    generate(parameters);
    EXPECT_FALSE(backend.last().sampling.sample) << parameters;
  }
  generate(R"({"temperature":0.7,"seed":18446744073709551615,"repetition_penalty":1.5,)"
           R"("frequency_penalty":-1,"presence_penalty":2,"ignore_eos_token":true})");
  const Request request = backend.last();
  EXPECT_EQ(request.sampling.seed, 18446744073709551615U);
  EXPECT_FLOAT_EQ(request.sampling.temperature, 0.7F);
  EXPECT_FLOAT_EQ(request.sampling.repetition_penalty, 1.5F);
  EXPECT_FLOAT_EQ(request.sampling.frequency_penalty, -1.0F);
  EXPECT_FLOAT_EQ(request.sampling.presence_penalty, 2.0F);
  EXPECT_TRUE(request.ignore_eos);
  const int64_t input = static_cast<int64_t>(request.prompt.size());
  EXPECT_EQ(request.max_new_tokens, 256 - input);
}

TEST_F(Lorax, the_seed_is_reported_when_sampling) {
  const auto seed = [&](const char* parameters) {
    return generate(parameters).json().as_object().at("details").as_object().at("seed");
  };
  EXPECT_EQ(seed(R"({"details":true,"do_sample":true,"seed":7})").as_int64(), 7);
  EXPECT_FALSE(seed(R"({"details":true,"do_sample":true})").is_null());
  EXPECT_NE(seed(R"({"details":true,"do_sample":true})"),
            seed(R"({"details":true,"do_sample":true})"));
}

TEST_F(Lorax, best_of_keeps_the_most_probable) {
  std::atomic<int> count = 0;
  backend.set_plan([&](const Request&) {
    Script script;
    const int i = count++;
    script.tokens = {token_event(70 + i, i == 1 ? -0.1F : -3.0F)};
    return script;
  });
  const json::object details = generate(R"({"details":true,"do_sample":true,"best_of":2})")
                                   .json()
                                   .as_object()
                                   .at("details")
                                   .as_object();
  EXPECT_EQ(details.at("tokens").as_array()[0].as_object().at("id").as_int64(), 71);
  EXPECT_EQ(details.at("best_of_sequences").as_array().size(), 1U);
  EXPECT_NE(backend.submitted()[0].sampling.seed, backend.submitted()[1].sampling.seed);
}

TEST_F(Lorax, a_failure_inside_is_500_or_an_event) {
  backend.set_plan([](const Request&) { return ScriptedBackend::failing(Code::internal, "NaN"); });
  Reply reply = generate("{}");
  EXPECT_EQ(reply.status, 500);
  EXPECT_THAT(reply.body, HasSubstr(R"("error_type":"incomplete_generation")"));
  backend.set_plan([&](const Request&) {
    Script script = ScriptedBackend::failing(Code::internal, "NaN");
    script.tokens = {token_event(70), token_event(71)};
    return script;
  });
  backend.set_round(std::chrono::milliseconds(20));
  const auto events = stream("/generate_stream", R"({"inputs":"a"})");
  EXPECT_THAT(events.front(), HasSubstr("token"));
  EXPECT_THAT(events.back(), HasSubstr("incomplete_generation"));
}

TEST_F(Lorax, I1_a_full_engine_is_429_with_retry_after) {
  backend.set_capacity(0);
  const Reply reply = generate("{}");
  EXPECT_EQ(reply.status, 429);
  EXPECT_EQ(reply.body, R"({"error":"Model is overloaded","error_type":"overloaded"})");
  EXPECT_EQ(reply.headers.count("retry-after"), 1U);
}

TEST_F(Lorax, B1_bodies_that_are_no_object) {
  for (const char* body : {"", "{", "{\"inputs\":\"a\"} x", "nonsense"}) {
    const Reply reply = post("/generate", body);
    EXPECT_EQ(reply.status, 400) << body;
    EXPECT_THAT(reply.body, HasSubstr("byte")) << body;
  }
  for (const char* body : {"[]", "\"x\"", "null", "1"}) {
    EXPECT_EQ(post("/generate", body).status, 422) << body;
  }
  EXPECT_EQ(post("/generate", R"({"inputs":"a","inputs":"b"})").status, 400);
}

TEST_F(Lorax, B2_B3_bad_text_and_deep_nesting) {
  EXPECT_EQ(post("/generate", "{\"inputs\":\"\xff\"}").status, 400);
  EXPECT_EQ(post("/generate", R"({"inputs":"\ud800"})").status, 400);
  EXPECT_EQ(post("/generate", R"({"inputs":"a","x":)" + std::string(100000, '[')).status, 400);
  EXPECT_EQ(post("/generate", "{\"inputs\":\"a\\u0000b\"}").status,
            200);  // a character like others
}

TEST_F(Lorax, B4_values_of_the_wrong_kind_name_the_field) {
  EXPECT_THAT(refusal(R"({"top_k":1.5})"), HasSubstr("`top_k`"));
  EXPECT_THAT(refusal(R"({"top_k":"5"})"), HasSubstr("`top_k` must be an integer, found a string"));
  EXPECT_THAT(refusal(R"({"max_new_tokens":9223372036854775808})"), HasSubstr("max_new_tokens"));
  EXPECT_THAT(refusal(R"({"temperature":true})"), HasSubstr("`temperature` must be a number"));
  EXPECT_THAT(refusal(R"({"do_sample":1})"), HasSubstr("`do_sample` must be true or false"));
  EXPECT_THAT(refusal(R"({"seed":-1})"), HasSubstr("`seed`"));
  EXPECT_THAT(refusal(R"({"seed":1.0})"), HasSubstr("`seed`"));
  EXPECT_THAT(refusal(R"({"stop":[1]})"), HasSubstr("`stop`"));
  EXPECT_EQ(generate(R"({"temperature":1e999})").status, 400);
  EXPECT_EQ(generate(R"({"temperature":null,"stop":null,"top_k":null})").status, 200);
}

TEST_F(Lorax, B5_B12_ranges_in_lorax_words) {
  EXPECT_EQ(refusal(R"({"temperature":-0.1})"), "`temperature` must be non-negative");
  EXPECT_EQ(refusal(R"({"repetition_penalty":0})"),
            "`repetition_penalty` must be strictly positive");
  EXPECT_EQ(refusal(R"({"top_k":0})"), "`top_k` must be strictly positive");
  EXPECT_EQ(refusal(R"({"top_k":-1})"), "`top_k` must be strictly positive");
  EXPECT_EQ(refusal(R"({"top_p":0})"), "`top_p` must be > 0.0 and < 1.0");
  EXPECT_EQ(refusal(R"({"top_p":1.1})"), "`top_p` must be > 0.0 and < 1.0");
  EXPECT_EQ(refusal(R"({"typical_p":1})"), "`typical_p` must be > 0.0 and < 1.0");
  EXPECT_EQ(refusal(R"({"max_new_tokens":0})"), "`max_new_tokens` must be strictly positive");
  EXPECT_EQ(refusal(R"({"max_new_tokens":-5})"), "`max_new_tokens` must be strictly positive");
  EXPECT_THAT(refusal(R"({"frequency_penalty":2.5})"), HasSubstr("`frequency_penalty`"));
  EXPECT_THAT(refusal(R"({"presence_penalty":-2.5})"), HasSubstr("`presence_penalty`"));
  EXPECT_THAT(refusal(R"({"return_k_alternatives":0})"), HasSubstr("> 0"));
  EXPECT_EQ(refusal(R"({"truncate":0})"),
            "`truncate` must be strictly positive and less than 256. Given: 0");
  EXPECT_EQ(refusal(R"({"truncate":256})"),
            "`truncate` must be strictly positive and less than 256. Given: 256");
}

TEST_F(Lorax, B6_B14_best_of) {
  EXPECT_EQ(refusal(R"({"best_of":3,"do_sample":true})"),
            "`best_of` must be > 0 and <= 2. Given: 3");
  EXPECT_EQ(refusal(R"({"best_of":0})"), "`best_of` must be > 0 and <= 2. Given: 0");
  EXPECT_EQ(refusal(R"({"best_of":2})"), "you must use sampling when `best_of` is > 1");
  EXPECT_EQ(refusal(R"({"best_of":2,"do_sample":true,"seed":1})"),
            "`seed` must not be set when `best_of` > 1");
  EXPECT_EQ(refusal(R"({"best_of":2,"do_sample":true})", "/generate_stream"),
            "`best_of` != 1 is not supported when streaming tokens");
  EXPECT_EQ(refusal(R"({"decoder_input_details":true})", "/generate_stream"),
            "`decoder_input_details` == true is not supported when streaming tokens");
}

TEST_F(Lorax, B7_empty_inputs) {
  const Reply reply = post("/generate", R"({"inputs":""})");
  EXPECT_EQ(reply.status, 422);
  EXPECT_EQ(reply.body, R"({"error":"Input validation error: `inputs` cannot be empty",)"
                        R"("error_type":"validation"})");
  EXPECT_EQ(post("/generate", R"({"inputs":7})").status, 422);
  EXPECT_EQ(post("/generate", "{}").status, 422);
}

TEST_F(Lorax, B8_prompts_that_are_too_long) {
  const auto error = [&](const std::string& body) {
    const Reply reply = post("/generate", body);
    EXPECT_EQ(reply.status, 422);
    return reply.body;
  };
  std::string text;
  for (int i = 0; i < 300; ++i) text += " 7";
  EXPECT_THAT(error(R"({"inputs":")" + text + "\"}"),
              HasSubstr("`inputs` must have less than 255 tokens. Given: "));
  EXPECT_THAT(error(R"({"inputs":"7","parameters":{"max_new_tokens":256}})"),
              HasSubstr("`inputs` tokens + `max_new_tokens` must be <= 256. Given: 1 `inputs` "
                        "tokens and 256 `max_new_tokens`"));
  // Refused by its bytes, without being tokenised.
  EXPECT_THAT(error(R"({"inputs":")" + std::string(1000000, 'a') + "\"}"),
              HasSubstr("`inputs` must have less than 255 tokens. Given: "));
  // Truncation comes first.
  EXPECT_EQ(
      post("/generate", R"({"inputs":")" + text + R"(","parameters":{"truncate":10}})").status,
      200);
}

TEST_F(Lorax, B11_stop_sequences) {
  EXPECT_EQ(refusal(R"({"stop":["a","b","c","d","e"]})"),
            "`stop` supports up to 4 stop sequences. Given: 5");
  EXPECT_THAT(refusal(R"({"stop":[""]})"), HasSubstr("cannot be empty"));
  EXPECT_THAT(refusal(R"({"stop":[")" + std::string(1000000, 'a') + "\"]}"), HasSubstr("1000000"));
}

TEST_F(Lorax, B18_unknown_fields_are_ignored_and_counted) {
  EXPECT_EQ(generate(R"({"surely_unknown":{"a":[1]}})").status, 200);
  EXPECT_THAT(get("/metrics").body, HasSubstr("lorry_unknown_fields_total 1"));
}

TEST_F(Lorax, what_is_not_supported_is_refused_by_name) {
  EXPECT_THAT(refusal(R"({"response_format":{"type":"sound"}})"), HasSubstr("`response_format`"));
  EXPECT_EQ(generate(R"({"response_format":{"type":"text"}})").status, 200);
}

TEST_F(Lorax, a_watermark_has_the_share_and_strength_of_the_server) {
  options.watermark = {.gamma = 0.25, .delta = 3.0F};
  for (const char* none : {"{}", R"({"watermark":false})", R"({"watermark":null})"}) {
    EXPECT_EQ(generate(none).status, 200);
    EXPECT_FALSE(backend.last().sampling.watermark) << none;
  }
  const auto expect_mark = [&] {
    for (const Request& request : backend.submitted()) {
      if (!request.sampling.watermark) continue;
      EXPECT_EQ(request.sampling.watermark->gamma, 0.25);
      EXPECT_EQ(request.sampling.watermark->delta, 3.0F);
    }
    EXPECT_TRUE(backend.last().sampling.watermark);
  };
  EXPECT_EQ(generate(R"({"watermark":true})").status, 200);
  expect_mark();
  EXPECT_FALSE(backend.last().sampling.sample);  // it does not turn sampling on
  EXPECT_FALSE(backend.last().sampling.raw_logprobs);
  EXPECT_EQ(post("/", R"({"inputs":"a","parameters":{"watermark":true}})").status, 200);
  expect_mark();
  EXPECT_FALSE(
      stream("/generate_stream", R"({"inputs":"a","parameters":{"watermark":true}})").empty());
  expect_mark();
  const size_t before = backend.submitted().size();
  EXPECT_EQ(generate(R"({"watermark":true,"best_of":2,"do_sample":true})").status, 200);
  ASSERT_EQ(backend.submitted().size(), before + 2);
  EXPECT_TRUE(backend.submitted()[before].sampling.watermark);
  expect_mark();
  EXPECT_EQ(refusal(R"({"watermark":"yes"})"), "`watermark` must be true or false, found a string");
}

}  // namespace
}  // namespace lorry
