// POST /v1/responses: what is asked, the object and the events that make it up.
#include "serve/openai_test_base.h"

namespace lorry {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

constexpr const char* kTools =
    R"("tools":[{"type":"function","name":"get_weather","description":"Weather.","strict":true,)"
    R"("parameters":{"type":"object","properties":{"city":{"type":"string"}},)"
    R"("required":["city"],"additionalProperties":false}}])";

class Responses : public OpenAi {
 protected:
  Responses() { backend.set_max_total_tokens(4096); }
  void say(const std::string& text) {
    backend.set_plan([this, text](const Request& request) { return backend.say(text, request); });
  }
  Reply respond(const std::string& more = "", const std::string& input = "\"hi\"") {
    return post("/v1/responses", "{\"input\":" + input + more + "}");
  }
  json::object object_of(const std::string& more = "", const std::string& input = "\"hi\"") {
    const Reply reply = respond(more, input);
    EXPECT_EQ(reply.status, 200) << reply.body;
    return reply.status == 200 ? reply.json().as_object() : json::object();
  }
  std::string refusal(const std::string& more, const std::string& input = "\"hi\"") {
    return message_of(respond(more, input));
  }
  // The events of a stream, each of which names its type twice and counts from 0.
  std::vector<json::object> events(const std::string& more = "") {
    const std::string body = respond(R"(,"stream":true)" + more).body;
    std::vector<json::object> out;
    for (size_t at = 0; at < body.size();) {
      const size_t line = body.find('\n', at);
      const size_t end = body.find("\n\n", at);
      const std::string type = body.substr(at + 7, line - at - 7);
      EXPECT_EQ(body.substr(at, 7), "event: ");
      EXPECT_EQ(body.substr(line + 1, 6), "data: ");
      out.push_back(parse_json(body.substr(line + 7, end - line - 7), "event").as_object());
      EXPECT_EQ(text(out.back(), "type"), type);
      EXPECT_EQ(out.back().at("sequence_number").as_int64(), int64_t(out.size()) - 1);
      at = end + 2;
    }
    return out;
  }
  static std::string text(const json::object& object, const char* name) {
    return std::string(object.at(name).as_string());
  }
  static json::object item_of(const json::object& response, size_t i) {
    return response.at("output").as_array()[i].as_object();
  }
  static std::string text_of_item(const json::object& item) {
    return text(item.at("content").as_array()[0].as_object(), "text");
  }
  static std::vector<std::string> types_of(const std::vector<json::object>& all) {
    std::vector<std::string> types;
    for (const json::object& event : all) {
      const std::string type = text(event, "type");
      if (types.empty() || types.back() != type) types.push_back(type);  // deltas: once
    }
    return types;
  }
  std::string prompt() const { return backend.tokenizer().decode(backend.last().prompt, false); }
};

TEST_F(Responses, text_is_a_message) {
  say("It is warm.");
  const json::object response = object_of(R"(,"model":"tiny","temperature":0.5,"user":"me")");
  EXPECT_EQ(text(response, "object"), "response");
  EXPECT_TRUE(text(response, "id").starts_with("resp_"));
  EXPECT_EQ(text(response, "status"), "completed");
  EXPECT_EQ(text(response, "model"), "tiny");
  EXPECT_EQ(text(response, "user"), "me");
  EXPECT_EQ(response.at("temperature").as_double(), 0.5);
  EXPECT_EQ(response.at("store").as_bool(), false);
  for (const char* name : {"error", "incomplete_details", "instructions", "max_output_tokens",
                           "previous_response_id"}) {
    EXPECT_TRUE(response.at(name).is_null()) << name;
  }
  ASSERT_EQ(response.at("output").as_array().size(), 1U);
  const json::object item = item_of(response, 0);
  EXPECT_EQ(text(item, "type"), "message");
  EXPECT_EQ(text(item, "role"), "assistant");
  EXPECT_EQ(text(item, "status"), "completed");
  EXPECT_EQ(text_of_item(item), "It is warm.");
  const json::object usage = response.at("usage").as_object();
  EXPECT_EQ(usage.at("total_tokens").as_int64(),
            usage.at("input_tokens").as_int64() + usage.at("output_tokens").as_int64());
}

TEST_F(Responses, the_prompt_is_that_of_the_same_chat) {
  ASSERT_EQ(post("/v1/chat/completions", R"({"messages":[{"role":"system","content":"Be brief."},
      {"role":"user","content":"a\nb"},{"role":"assistant","content":"c"},
      {"role":"user","content":"d"}]})")
                .status,
            200);
  const std::string chat = prompt();
  object_of(R"(,"instructions":"Be brief.")", R"([
      {"role":"user","content":[{"type":"input_text","text":"a"},{"type":"input_text","text":"b"}]},
      {"type":"message","role":"assistant","id":"msg_1","status":"completed",
       "content":[{"type":"output_text","text":"c","annotations":[],"logprobs":[]}]},
      {"role":"user","content":"d"}])");
  EXPECT_EQ(prompt(), chat);
}

TEST_F(Responses, too_few_tokens_are_an_incomplete_response) {
  say("one two three four five");
  const json::object response = object_of(R"(,"max_output_tokens":2)");
  EXPECT_EQ(text(response, "status"), "incomplete");
  EXPECT_EQ(text(response.at("incomplete_details").as_object(), "reason"), "max_output_tokens");
  EXPECT_EQ(text(item_of(response, 0), "status"), "incomplete");
  EXPECT_EQ(response.at("usage").as_object().at("output_tokens").as_int64(), 2);
  EXPECT_EQ(text(events(R"(,"max_output_tokens":2)").back(), "type"), "response.incomplete");
}

TEST_F(Responses, events_make_up_the_response) {
  say("It is warm.");
  const auto all = events();
  EXPECT_THAT(types_of(all),
              ElementsAre("response.created", "response.in_progress", "response.output_item.added",
                          "response.content_part.added", "response.output_text.delta",
                          "response.output_text.done", "response.content_part.done",
                          "response.output_item.done", "response.completed"));
  std::string deltas;
  for (const json::object& event : all) {
    if (text(event, "type") == "response.output_text.delta") deltas += text(event, "delta");
  }
  EXPECT_EQ(deltas, "It is warm.");
  const json::object begun = all.front().at("response").as_object();
  EXPECT_EQ(text(begun, "status"), "in_progress");
  EXPECT_TRUE(begun.at("output").as_array().empty() && begun.at("usage").is_null());
  const json::object response = all.back().at("response").as_object();
  EXPECT_EQ(text(response, "id"), text(begun, "id"));
  EXPECT_EQ(text_of_item(item_of(response, 0)), deltas);
  EXPECT_EQ(all[all.size() - 2].at("item"), response.at("output").as_array()[0]);
  EXPECT_GT(response.at("usage").as_object().at("output_tokens").as_int64(), 2);
}

TEST_F(Responses, an_answer_without_text_is_an_empty_message) {
  say("");
  EXPECT_EQ(text_of_item(item_of(object_of(), 0)), "");
  EXPECT_EQ(text_of_item(item_of(events().back().at("response").as_object(), 0)), "");
}

TEST_F(Responses, stop_texts_end_it_and_are_not_told) {
  say_until("one two STOP", " STOP");
  EXPECT_EQ(text_of_item(item_of(object_of(R"(,"stop":" STOP")"), 0)), "one two");
}

TEST_F(Responses, calls_are_items_whole_and_streamed) {
  const std::string two = R"([{"name": "get_weather", "arguments": {"city": "Oslo"}}, )"
                          R"({"name": "get_weather", "arguments": {"city": "Rome"}}])";
  say(two);
  const json::object response = object_of("," + std::string(kTools));
  ASSERT_EQ(response.at("output").as_array().size(), 2U);
  EXPECT_EQ(response.at("tools").as_array().size(), 1U);
  for (size_t i = 0; i < 2; ++i) {
    const json::object call = item_of(response, i);
    EXPECT_EQ(text(call, "type"), "function_call");
    EXPECT_EQ(text(call, "name"), "get_weather");
    EXPECT_EQ(text(call, "arguments"), i == 0 ? R"({"city": "Oslo"})" : R"({"city": "Rome"})");
    EXPECT_FALSE(text(call, "call_id").empty());
  }
  const auto all = events("," + std::string(kTools));
  EXPECT_THAT(
      types_of(all),
      ElementsAre("response.created", "response.in_progress", "response.output_item.added",
                  "response.function_call_arguments.delta", "response.function_call_arguments.done",
                  "response.output_item.done", "response.output_item.added",
                  "response.function_call_arguments.delta", "response.function_call_arguments.done",
                  "response.output_item.done", "response.completed"));
  std::vector<std::string> arguments(2);
  for (const json::object& event : all) {
    if (text(event, "type") != "response.function_call_arguments.delta") continue;
    arguments[size_t(event.at("output_index").as_int64())] += text(event, "delta");
  }
  EXPECT_THAT(arguments, ElementsAre(R"({"city": "Oslo"})", R"({"city": "Rome"})"));
}

TEST_F(Responses, a_call_that_breaks_off_is_incomplete) {
  say(R"([{"name": "get_weather", "arguments": {"city": "Os)");
  const json::object call = item_of(object_of("," + std::string(kTools)), 0);
  EXPECT_EQ(text(call, "arguments"), R"({"city": "Os)");
  const size_t n = backend.last().max_new_tokens > 0 ? 8 : 0;
  const json::object cut =
      object_of("," + std::string(kTools) + ",\"max_output_tokens\":" + std::to_string(n));
  EXPECT_EQ(text(item_of(cut, 0), "status"), "incomplete");
}

TEST_F(Responses, a_call_and_its_result_are_those_of_a_chat) {
  const std::string calls = R"({"city":"Oslo"})";
  ASSERT_EQ(
      post("/v1/chat/completions",
           R"({"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"Wait.",
      "tool_calls":[{"id":"1","type":"function","function":{"name":"get_weather",
        "arguments":"{\"city\":\"Oslo\"}"}}]},
      {"role":"tool","tool_call_id":"1","content":"cold"}],
      "tools":[{"type":"function","function":{"name":"get_weather"}}]})")
          .status,
      200);
  const std::string chat = prompt();
  object_of(R"(,"tools":[{"type":"function","name":"get_weather"}])",
            R"([{"role":"user","content":"a"},{"role":"assistant","content":"Wait."},
      {"type":"function_call","call_id":"1","name":"get_weather","id":"fc_1",
       "arguments":"{\"city\":\"Oslo\"}"},
      {"type":"function_call_output","call_id":"1","output":"cold"}])");
  EXPECT_EQ(prompt(), chat);
}

TEST_F(Responses, a_choice_and_a_format_bind_the_answer) {
  object_of("," + std::string(kTools) +
            R"(,"tool_choice":{"type":"function","name":"get_weather"})");
  EXPECT_NE(backend.last().grammar, nullptr);
  object_of(R"(,"text":{"format":{"type":"json_schema","name":"a","strict":true,
      "schema":{"type":"object"}}})");
  EXPECT_NE(backend.last().grammar, nullptr);
  object_of(R"(,"text":{"format":{"type":"text"}})");
  EXPECT_EQ(backend.last().grammar, nullptr);
}

TEST_F(Responses, log_probabilities_are_those_of_the_tokens) {
  say("one two");
  const std::string ask = R"(,"include":["message.output_text.logprobs"],"top_logprobs":1)";
  const json::object response = object_of(ask);
  EXPECT_TRUE(backend.last().sampling.logprobs);
  const json::object part = item_of(response, 0).at("content").as_array()[0].as_object();
  const json::array whole = part.at("logprobs").as_array();
  ASSERT_GE(whole.size(), 2U);
  EXPECT_TRUE(whole[0].as_object().contains("bytes"));
  json::array streamed;
  for (const json::object& event : events(ask)) {
    if (text(event, "type") != "response.output_text.delta") continue;
    for (const json::value& token : event.at("logprobs").as_array()) streamed.push_back(token);
  }
  ASSERT_LE(streamed.size(), whole.size());
  for (size_t i = 0; i < streamed.size(); ++i) EXPECT_EQ(streamed[i], whole[i]);
  EXPECT_GE(streamed.size() + 1, whole.size());  // the end's token adds no text
}

TEST_F(Responses, adapters_are_named_as_everywhere) {
  object_of(R"(,"model":"acme/a")");
  EXPECT_EQ(backend.last().adapter.label(), "acme/a");
}

TEST_F(Responses, an_engine_that_fails_is_an_error_event_or_status) {
  backend.set_plan(
      [](const Request&) { return ScriptedBackend::failing(Code::internal, "no luck"); });
  EXPECT_EQ(message_of(respond(), 500), "no luck");
  backend.set_plan([this](const Request& request) {
    Script script = backend.say("one two", request);
    script.finish = ScriptedBackend::failing(Code::internal, "no luck").finish;
    return script;
  });
  const auto all = events();
  EXPECT_EQ(text(all.back(), "type"), "error");
  EXPECT_EQ(text(all.back(), "code"), "server_error");
}

TEST_F(Responses, nothing_is_kept) {
  for (const char* path : {"/v1/responses/resp_1", "/v1/conversations"}) {
    const Reply reply = get(path);
    EXPECT_EQ(reply.status, 404);
    EXPECT_THAT(reply.body, HasSubstr("nothing is kept of responses"));
  }
  EXPECT_EQ(get("/v1/responses").status, 405);
  for (const char* field :
       {R"("previous_response_id":"resp_1")", R"("conversation":"conv_1")", R"("background":true)",
        R"("store":true)", R"("prompt":{"id":"p"})", R"("truncation":"auto")",
        R"("reasoning":{"effort":"high"})", R"("max_tool_calls":1)"}) {
    EXPECT_THAT(refusal("," + std::string(field)), HasSubstr("is not supported")) << field;
  }
  object_of(R"(,"store":false,"truncation":"disabled","background":false,"metadata":{},
      "reasoning":null,"include":["reasoning.encrypted_content"],"service_tier":"auto")");
}

TEST_F(Responses, bad_requests_are_400_and_name_the_field) {
  for (const char* input :
       {"null", "7", "[]", "[7]", "{}", R"([{"role":"tool","content":"a"}])",
        R"([{"role":"user"}])", R"([{"role":"user","content":7}])",
        R"([{"role":"user","content":[7]}])",
        R"([{"role":"user","content":[{"type":"input_image","image_url":"a"}]}])",
        R"([{"role":"user","content":[{"type":"input_text"}]}])", R"([{"type":7}])",
        R"([{"type":"reasoning","summary":[]}])", R"([{"type":"item_reference","id":"a"}])",
        R"([{"type":"function_call","call_id":"1","name":"f"}])",
        R"([{"type":"function_call","call_id":"","name":"f","arguments":"{}"}])",
        R"([{"type":"function_call_output","output":"a"}])",
        R"([{"type":"function_call_output","call_id":"1"}])"}) {
    EXPECT_THAT(refusal("", input), HasSubstr("`input")) << input;
  }
  EXPECT_THAT(message_of(post("/v1/responses", "{}")), HasSubstr("`input`"));
  EXPECT_THAT(refusal(R"(,"instructions":7)"), HasSubstr("`instructions`"));
  EXPECT_THAT(refusal(R"(,"max_output_tokens":0)"), HasSubstr("`max_output_tokens`"));
  EXPECT_THAT(refusal(R"(,"include":["all"])"), HasSubstr("`include`"));
  EXPECT_THAT(refusal(R"(,"include":"all")"), HasSubstr("`include`"));
  EXPECT_THAT(refusal(R"(,"top_logprobs":2)"), HasSubstr("`include`"));
  EXPECT_THAT(refusal(R"(,"text":7)"), HasSubstr("`text`"));
  EXPECT_THAT(refusal(R"(,"text":{"format":{"type":"x"}})"), HasSubstr("`text`"));
  EXPECT_THAT(refusal(R"(,"text":{"verbosity":"low"})"), HasSubstr("verbosity"));
  EXPECT_THAT(refusal(R"(,"tools":[{"type":"function"}])"), HasSubstr("`tools[0]`"));
  EXPECT_THAT(refusal(R"(,"tools":[{"type":"web_search"}])"), HasSubstr("`tools[0]`"));
  EXPECT_THAT(refusal("," + std::string(kTools) + R"(,"tool_choice":{"type":"mcp"})"),
              HasSubstr("`tool_choice`"));
  EXPECT_THAT(refusal(R"(,"text":{"format":{"type":"json_object"}},)" + std::string(kTools)),
              AllOf(HasSubstr("`text`"), HasSubstr("`tools`"), Not(HasSubstr("response_format"))));
}

}  // namespace
}  // namespace lorry
