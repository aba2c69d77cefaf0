// Tools of a model whose template takes them and whose vocabulary has [TOOL_CALLS]: Mistral's form.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "serve/http_client.h"
#include "serve/scripted_backend.h"
#include "serve/server.h"
#include "serve/server_test_base.h"
#include "text/edited_model.h"

namespace lorry {
namespace {

using testing::HasSubstr;

// After mistralai/Mixtral-8x22B-Instruct-v0.1's.
constexpr const char* kTemplate = R"J({{- bos_token }}
{%- set user_messages = messages | selectattr("role", "equalto", "user") | list %}
{%- for message in messages %}
  {%- if message["role"] == "user" %}
    {%- if tools is not none and (message == user_messages[-1]) %}
      {{- "[AVAILABLE_TOOLS] " + tools | tojson + "[/AVAILABLE_TOOLS]" }}
    {%- endif %}
    {{- "[INST] " + message["content"] + "[/INST]" }}
  {%- elif message.tool_calls is defined and message.tool_calls is not none %}
    {{- "[TOOL_CALLS] [" }}
    {%- for tool_call in message.tool_calls %}
      {%- set out = tool_call.function|tojson %}
      {{- out[:-1] }}
      {%- if not tool_call.id is defined or tool_call.id|length != 9 %}
        {{- raise_exception("Tool call IDs should be alphanumeric strings with length 9!") }}
      {%- endif %}
      {{- ', "id": "' + tool_call.id + '"}' }}
      {{- ", " if not loop.last else "]" + eos_token }}
    {%- endfor %}
  {%- elif message["role"] == "assistant" %}
    {{- " " + message["content"] + eos_token }}
  {%- elif message["role"] == "tool" %}
    {{- '[TOOL_RESULTS] {"content": ' + message.content|string + ', "call_id": "'
        + message.tool_call_id + '"}[/TOOL_RESULTS]' }}
  {%- endif %}
{%- endfor %})J";

constexpr const char* kTools =
    R"("tools":[{"type":"function","function":{"name":"get_weather","parameters":)"
    R"({"type":"object","properties":{"city":{"type":"string"}},"required":["city"]}}}])";

struct EditedFolder {
  EditedFolder() : model("dbrx-base") {
    model.add_token("[TOOL_CALLS]", true);
    model.write("chat_template.jinja", kTemplate);
  }
  golden::EditedModel model;
};

class MistralTools : public EditedFolder, public testing::Test {
 protected:
  MistralTools()
      : log({LogLevel::off, false}),
        backend(model.path()),
        marker(backend.tokenizer().id_of("[TOOL_CALLS]").value()) {
    backend.set_max_total_tokens(4096);
    ServerOptions options;
    options.http.port = 0;
    server = std::make_unique<Server>(options, log);
    server->start();
    server->serve(backend);
  }
  Reply ask(const std::string& more, const std::string& messages = "") {
    const std::string usual = R"([{"role":"user","content":"weather?"}])";
    return Client(server->port())
        .post("/v1/chat/completions",
              "{\"messages\":" + (messages.empty() ? usual : messages) + "," + kTools + more + "}");
  }
  // An engine that says `before`, the marker, and `after`.
  void say(const std::string& before, const std::string& after) {
    backend.set_plan([this, before, after](const Request& request) {
      Script script = backend.say(before, request);
      script.tokens.pop_back();
      script.tokens.push_back(token_event(marker));
      for (const TokenEvent& event : backend.say(after, request).tokens) {
        script.tokens.push_back(event);
      }
      script.finish.reason = FinishReason::eos_token;
      return script;
    });
  }

  Log log;
  ScriptedBackend backend;
  const int32_t marker;
  std::unique_ptr<Server> server;
};

TEST_F(MistralTools, the_template_gets_tools_and_history) {
  ASSERT_EQ(ask("", R"([{"role":"user","content":"a"},
      {"role":"assistant","content":null,"tool_calls":[{"id":"abcdefghi","type":"function",
        "function":{"name":"get_weather","arguments":"{\"city\": \"Oslo\"}"}}]},
      {"role":"tool","tool_call_id":"abcdefghi","content":"cold"},
      {"role":"user","content":"and?"}])")
                .status,
            200);
  const std::string text = backend.tokenizer().decode(backend.last().prompt, false);
  EXPECT_THAT(text, HasSubstr(R"([AVAILABLE_TOOLS] [{"type": "function", "function": {"name": )"
                              R"("get_weather", "parameters": {"type": "object")"));
  EXPECT_THAT(text, HasSubstr(R"([TOOL_CALLS] [{"name": "get_weather", "arguments": )"
                              R"({"city": "Oslo"}, "id": "abcdefghi"}])"));
  EXPECT_THAT(text, HasSubstr(R"([TOOL_RESULTS] {"content": cold, "call_id": "abcdefghi"})"));
  const std::vector<int32_t>& prompt = backend.last().prompt;
  EXPECT_EQ(std::count(prompt.begin(), prompt.end(), marker), 1);
}

TEST_F(MistralTools, calls_behind_the_marker_are_found_whole_and_in_streams) {
  say("Let me see. ", R"( [{"name": "get_weather", "arguments": {"city": "Oslo"}, "id": "x"}])");
  const json::object choice = ask("").json().as_object().at("choices").as_array()[0].as_object();
  EXPECT_EQ(choice.at("finish_reason").as_string(), "tool_calls");
  const json::object message = choice.at("message").as_object();
  EXPECT_EQ(message.at("content").as_string(), "Let me see. ");
  const json::object call = message.at("tool_calls").as_array()[0].as_object();
  EXPECT_EQ(call.at("function").as_object().at("arguments").as_string(), R"({"city": "Oslo"})");

  std::string content, arguments;
  for (const json::object& delta : deltas_of(ask(R"(,"stream":true)").body)) {
    if (delta.contains("content")) content += std::string(delta.at("content").as_string());
    if (!delta.contains("tool_calls")) continue;
    for (const json::value& piece : delta.at("tool_calls").as_array()) {
      const json::object function = piece.as_object().at("function").as_object();
      arguments += std::string(function.at("arguments").as_string());
    }
  }
  EXPECT_EQ(content, "Let me see. ");
  EXPECT_EQ(arguments, R"({"city": "Oslo"})");
}

TEST_F(MistralTools, a_required_call_begins_with_the_marker) {
  say("", R"([{"name": "get_weather", "arguments": {"city": "Oslo"}}])");
  ASSERT_EQ(ask(R"(,"tool_choice":"required")").status, 200);
  Constraint constraint(*backend.last().grammar);
  std::vector<uint32_t> words(static_cast<size_t>(backend.tokenizer().vocab_size()) / 32 + 1);
  constraint.mask(words);
  for (int32_t id = 0; id < backend.tokenizer().vocab_size(); ++id) {
    const auto i = static_cast<uint32_t>(id);
    EXPECT_EQ((words[i / 32] >> (i % 32) & 1U) != 0, id == marker) << id;
  }
}

TEST_F(MistralTools, ids_that_the_template_refuses_are_400) {
  const Reply reply = ask("", R"([{"role":"user","content":"a"},
      {"role":"assistant","tool_calls":[{"id":"call_1","function":{"name":"get_weather"}}]}])");
  EXPECT_EQ(reply.status, 400);
  EXPECT_THAT(reply.body, HasSubstr("length 9"));
}

}  // namespace
}  // namespace lorry
