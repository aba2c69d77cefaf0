// Tools: what is asked, what the model is shown, and calls in answers, whole and streamed.
#include "serve/openai_test_base.h"
#include "serve/tool_calls.h"

namespace lorry {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

constexpr const char* kTools =
    R"("tools":[{"type":"function","function":{"name":"get_weather","description":"Weather.",)"
    R"("parameters":{"type":"object","properties":{"city":{"type":"string"},)"
    R"("days":{"$ref":"#/$defs/days"}},"required":["city"],"additionalProperties":false,)"
    R"("$defs":{"days":{"type":"integer","minimum":1,"maximum":9}}}}},)"
    R"({"type":"function","function":{"name":"now"}}])";

constexpr const char* kCall = R"([{"name": "get_weather", "arguments": {"city": "Oslo"}}])";

class Tools : public OpenAi {
 protected:
  Tools() { backend.set_max_total_tokens(4096); }
  void say(const std::string& text) {
    backend.set_plan([this, text](const Request& request) { return backend.say(text, request); });
  }
  Reply ask(const std::string& more = "") { return chat("," + std::string(kTools) + more); }
  static json::object choice_of(const Reply& reply) {
    return reply.json().as_object().at("choices").as_array()[0].as_object();
  }
  static json::object choice_of_event(const std::string& event) {
    const json::object chunk = parse_json(event, "chunk").as_object();
    return chunk.at("choices").as_array()[0].as_object();
  }
  std::string prompt() const { return backend.tokenizer().decode(backend.last().prompt, false); }
  // The grammar of the last request takes this answer.
  bool admits(const std::string& text) const {
    EncodeOptions plain;
    plain.add_special = false;
    Constraint constraint(*backend.last().grammar);
    for (const int32_t id : backend.tokenizer().encode(text, plain)) {
      try {
        constraint.commit(id);
      } catch (const Error&) {
        return false;
      }
    }
    return constraint.accepting();
  }
};

TEST_F(Tools, a_call_is_told_with_an_id_and_its_own_finish_reason) {
  say(kCall);
  const Reply reply = ask(R"(,"tool_choice":"auto")");
  const json::object choice = choice_of(reply);
  EXPECT_EQ(choice.at("finish_reason").as_string(), "tool_calls");
  const json::object message = choice.at("message").as_object();
  EXPECT_TRUE(message.at("content").is_null());
  const json::array calls = message.at("tool_calls").as_array();
  ASSERT_EQ(calls.size(), 1U);
  EXPECT_EQ(calls[0].as_object().at("type").as_string(), "function");
  EXPECT_EQ(calls[0].as_object().at("id").as_string().size(), 9U);
  EXPECT_FALSE(calls[0].as_object().contains("index"));
  const json::object function = calls[0].as_object().at("function").as_object();
  EXPECT_EQ(function.at("name").as_string(), "get_weather");
  EXPECT_EQ(function.at("arguments").as_string(), R"({"city": "Oslo"})");
  EXPECT_EQ(backend.last().grammar, nullptr);  // free to answer otherwise
}

TEST_F(Tools, text_stays_text) {
  for (const char* text :
       {"It is warm.", "[not a call]", "{\"name\": \"other\", \"arguments\": {}}", "[", "{\"name\"",
        "[1, 2]", "{\"answer\": 5}", "[TOOL_CALLS] is a word"}) {
    say(text);
    const json::object choice = choice_of(ask());
    EXPECT_EQ(choice.at("finish_reason").as_string(), "stop") << text;
    const json::object message = choice.at("message").as_object();
    EXPECT_FALSE(message.contains("tool_calls"));
    EXPECT_THAT(std::string(text), HasSubstr(std::string(message.at("content").as_string())));
    std::string streamed;
    for (const std::string& event : events_of(ask(R"(,"stream":true)").body)) {
      if (event == "[DONE]") break;
      const json::object delta = choice_of_event(event).at("delta").as_object();
      EXPECT_FALSE(delta.contains("tool_calls"));
      if (delta.contains("content")) streamed += std::string(delta.at("content").as_string());
    }
    EXPECT_EQ(streamed, message.at("content").as_string()) << text;
  }
}

TEST_F(Tools, calls_are_streamed_as_deltas) {
  say(R"([{"name": "get_weather", "arguments": {"city": "Os]lo \"}\"", "days": [1]}}, )"
      R"({"name": "now", "arguments": {}}])");
  const auto events = events_of(ask(R"(,"stream":true)").body);
  ASSERT_EQ(events.back(), "[DONE]");
  std::vector<std::string> names(2), arguments(2), ids(2);
  std::string reasons;
  size_t pieces = 0;
  for (size_t i = 0; i + 1 < events.size(); ++i) {
    const json::object choice = choice_of_event(events[i]);
    const json::object delta = choice.at("delta").as_object();
    if (!choice.at("finish_reason").is_null()) {
      reasons += std::string(choice.at("finish_reason").as_string());
    }
    if (i == 0) {
      EXPECT_EQ(delta.at("role").as_string(), "assistant");
    }
    if (!delta.contains("tool_calls")) continue;
    for (const json::value& value : delta.at("tool_calls").as_array()) {
      const json::object call = value.as_object();
      const auto at = static_cast<size_t>(call.at("index").as_int64());
      const json::object function = call.at("function").as_object();
      if (call.contains("id")) {
        EXPECT_TRUE(names[at].empty() && arguments[at].empty());
        ids[at] = std::string(call.at("id").as_string());
        names[at] = std::string(function.at("name").as_string());
      }
      arguments[at] += std::string(function.at("arguments").as_string());
      ++pieces;
    }
  }
  EXPECT_EQ(names, (std::vector<std::string>{"get_weather", "now"}));
  EXPECT_EQ(arguments[0], R"({"city": "Os]lo \"}\"", "days": [1]})");
  EXPECT_EQ(arguments[1], "{}");
  EXPECT_NE(ids[0], ids[1]);
  EXPECT_EQ(reasons, "tool_calls");
  EXPECT_GT(pieces, 4U);  // as they come
}

TEST_F(Tools, a_call_that_breaks_off_is_length_with_what_there_is) {
  say(kCall);
  const json::object choice = choice_of(ask(R"(,"max_tokens":28)"));
  EXPECT_EQ(choice.at("finish_reason").as_string(), "length");
}

TEST_F(Tools, required_and_named_calls_are_a_grammar) {
  say(kCall);
  for (const char* choice : {R"("required")", R"("get_weather")",
                             R"({"type":"function","function":{"name":"get_weather"}})"}) {
    ASSERT_EQ(ask(std::string(",\"tool_choice\":") + choice).status, 200) << choice;
    ASSERT_NE(backend.last().grammar, nullptr);
    EXPECT_TRUE(admits(kCall));
    EXPECT_TRUE(admits(R"([{"name": "get_weather", "arguments": {"city": "a", "days": 3}}])"));
    EXPECT_FALSE(admits(R"([{"name": "get_weather", "arguments": {"city": "a", "days": 30}}])"));
    EXPECT_FALSE(admits(R"([{"name": "get_weather", "arguments": {}}])"));
    EXPECT_FALSE(admits("It is warm."));
    EXPECT_EQ(admits(R"([{"name": "now", "arguments": {}}])"),
              std::string(choice) == R"("required")");
  }
  ASSERT_EQ(ask(R"(,"tool_choice":"required")").status, 200);
  const std::string two = R"([{"name": "now", "arguments": {}}, {"name": "now", "arguments": {}}])";
  EXPECT_TRUE(admits(two));
  ASSERT_EQ(ask(R"(,"tool_choice":"required","parallel_tool_calls":false)").status, 200);
  EXPECT_FALSE(admits(two));
}

TEST_F(Tools, strict_tools_constrain_calls_and_leave_text_free) {
  say("x");
  std::string tools = kTools;
  tools.insert(tools.find(R"("name")"), R"("strict":true,)");
  ASSERT_EQ(chat("," + tools).status, 200);
  ASSERT_NE(backend.last().grammar, nullptr);
  EXPECT_TRUE(admits(kCall));
  EXPECT_TRUE(admits("It is warm [or so].\nReally."));
  EXPECT_TRUE(admits(""));
  EXPECT_FALSE(admits(R"([{"name": "get_weather", "arguments": {"town": "a"}}])"));
}

TEST_F(Tools, one_call_where_parallel_ones_are_not_wanted) {
  say(R"([{"name": "now", "arguments": {}}, {"name": "now", "arguments": {}}])");
  const auto calls = [&](const Reply& reply) {
    return choice_of(reply).at("message").as_object().at("tool_calls").as_array().size();
  };
  EXPECT_EQ(calls(ask()), 2U);
  EXPECT_EQ(calls(ask(R"(,"parallel_tool_calls":false)")), 1U);
}

TEST_F(Tools, none_shows_and_parses_nothing) {
  say(kCall);
  const json::object choice = choice_of(ask(R"(,"tool_choice":"none")"));
  EXPECT_EQ(choice.at("finish_reason").as_string(), "stop");
  EXPECT_EQ(choice.at("message").as_object().at("content").as_string(), kCall);
  EXPECT_THAT(prompt(), Not(HasSubstr("get_weather")));
}

// The golden model's template knows no tools.
TEST_F(Tools, a_template_without_tools_gets_a_system_text_and_ordinary_messages) {
  say("ok");
  ASSERT_EQ(post("/v1/chat/completions", "{" + std::string(kTools) + R"(,"messages":[
      {"role":"user","content":"weather?"},
      {"role":"assistant","content":null,"tool_calls":[{"id":"abcdefghi","type":"function",
        "function":{"name":"get_weather","arguments":"{\"city\":\"Oslo\"}"}}]},
      {"role":"tool","tool_call_id":"abcdefghi","content":"cold"},
      {"role":"tool","tool_call_id":"other","content":[{"type":"text","text":"warm"}]}]})")
                .status,
            200);
  const std::string text = prompt();
  EXPECT_THAT(text, AllOf(HasSubstr("<|im_start|>system\nYou can call functions."),
                          HasSubstr(R"("name":"get_weather")"),
                          HasSubstr(R"([{"name":"get_weather","arguments":{"city":"Oslo"}}])"),
                          HasSubstr("Result of get_weather:\ncold\n\nResult of other:\nwarm")));
}

TEST_F(Tools, B16_bad_tools_are_400) {
  const std::string ok = R"({"type":"function","function":{"name":"f"}})";
  for (const std::string& tools :
       {std::string("7"), std::string("[7]"), std::string(R"([{"type":"function"}])"),
        std::string(R"([{"type":"retrieval"}])"), std::string("[{}]"), "[" + ok + "," + ok + "]",
        std::string(R"([{"type":"function","function":{"name":"a b"}}])"),
        std::string(R"([{"type":"function","function":{"name":"f","parameters":5}}])"),
        std::string(R"([{"type":"function","function":{"name":"f","strict":5}}])"),
        std::string(
            R"([{"type":"function","function":{"name":"f","parameters":{"type":"array"}}}])")}) {
    EXPECT_THAT(chat_refusal(",\"tools\":" + tools), HasSubstr("`tools")) << tools;
  }
  const std::string with = ",\"tools\":[" + ok + "]";
  for (const char* choice : {"7", "\"g\"", R"({"type":"function"})", R"({"type":"allowed_tools"})",
                             R"({"type":"function","function":{"name":"g"}})"}) {
    EXPECT_THAT(chat_refusal(with + ",\"tool_choice\":" + choice), HasSubstr("`tool_choice`"));
  }
  EXPECT_THAT(chat_refusal(R"(,"tool_choice":"required")"), HasSubstr("needs `tools`"));
  EXPECT_THAT(chat_refusal(with + R"(,"response_format":{"type":"json_object"})"),
              HasSubstr("`tools`"));
  EXPECT_THAT(chat_refusal(with + R"(,"tool_choice":"required","tools_":1,"top_p":7)"),
              HasSubstr("top_p"));
  // Required arguments that no JSON can be.
  EXPECT_THAT(chat_refusal(R"(,"tool_choice":"required","tools":[{"type":"function","function":)"
                           R"({"name":"f","parameters":{"type":"object","$ref":"#/gone"}}}])"),
              HasSubstr("`tools`"));
}

TEST_F(Tools, B15_bad_calls_in_the_history_are_400) {
  const auto with_calls = [](const std::string& calls) {
    return R"([{"role":"assistant","content":null,"tool_calls":)" + calls + "}]";
  };
  for (const char* calls :
       {"7", "[7]", R"([{"id":"1"}])", R"([{"id":"1","function":{}}])",
        R"([{"function":{"name":"f"}}])", R"([{"id":"1","function":{"name":"f","arguments":7}}])",
        R"([{"id":"1","function":{"name":"f","arguments":"{"}}])",
        R"([{"id":"1","function":{"name":"f","arguments":"[]"}}])"}) {
    EXPECT_THAT(messages_refusal(with_calls(calls)), HasSubstr("tool_calls")) << calls;
  }
  EXPECT_THAT(messages_refusal(R"([{"role":"tool","content":"a"}])"), HasSubstr("tool_call_id"));
  EXPECT_THAT(messages_refusal(R"([{"role":"user","content":"a","tool_calls":[{"id":"1",)"
                               R"("function":{"name":"f"}}]}])"),
              HasSubstr("tool_calls"));
}

// ---- the parser alone

ToolPlan plan() { return {{"f", "g.h"}, true}; }

// In pieces of n bytes.
std::pair<std::string, std::string> parsed(const std::string& text, size_t n) {
  ToolCallParser parser(plan());
  std::string words;
  std::vector<ToolCallPiece> pieces;
  const auto take = [&](const AnswerPiece& piece) {
    words += piece.text;
    pieces.insert(pieces.end(), piece.calls.begin(), piece.calls.end());
  };
  for (size_t i = 0; i < text.size(); i += n) take(parser.push(text.substr(i, n)));
  take(parser.finish());
  std::string calls;
  for (const ToolCallPiece& call : whole_calls(pieces)) {
    calls += call.name + call.arguments + ";";
  }
  EXPECT_EQ(whole_calls(pieces).size(), parser.n_calls());
  return {words, calls};
}

TEST(ToolCallParser, finds_the_same_in_pieces_of_any_size) {
  const struct {
    std::string text, words, calls;
  } cases[] = {
      {R"({"name":"f","arguments":{}})", "", "f{};"},
      {R"( [ {"name" : "f", "parameters" : {"a":[1,{"b":2}]} , "id":"x}"} ] )", "",
       R"(f{"a":[1,{"b":2}]};)"},
      {R"([{"name":"f","arguments":{"s":"}\\\"]{"}},{"name":"g.h","arguments":{}}] tail)", "",
       R"(f{"s":"}\\\"]{"};g.h{};)"},
      {R"([TOOL_CALLS] [{"name":"f","arguments":{}}])", "", "f{};"},
      {R"([TOOL_CALLS]nothing)", "nothing", ""},
      {R"([{"name":"f","arguments":{"a")", "", R"(f{"a";)"},
      {R"([{"name":"f","arguments":"text"}])", R"([{"name":"f","arguments":"text"}])", ""},
      {R"([{"name":"f","arguments":{}}, 5])", "", "f{};"},
      {R"({"name":"nobody","arguments":{}})", R"({"name":"nobody","arguments":{}})", ""},
      {R"(Here: [{"name":"f","arguments":{}}])", R"(Here: [{"name":"f","arguments":{}}])", ""},
      {"  ", "  ", ""},
      {"[TOOL_", "[TOOL_", ""},
      {"", "", ""}};
  for (const auto& c : cases) {
    for (size_t n : {1U, 2U, 3U, 7U, 1000U}) {
      const auto [words, calls] = parsed(c.text, n);
      EXPECT_EQ(words, c.words) << c.text << " in " << n;
      EXPECT_EQ(calls, c.calls) << c.text << " in " << n;
    }
  }
}

TEST(ToolCallParser, the_marker_may_follow_text) {
  ToolCallParser parser(plan());
  EXPECT_EQ(parser.push("Let me see.").text, "Let me see.");
  EXPECT_TRUE(parser.mark().empty());
  EXPECT_EQ(parser.push(R"([{"name":"f","arguments":{)").calls.size(), 1U);
  EXPECT_EQ(parser.push("}}]").calls.at(0).arguments, "}");
  EXPECT_TRUE(parser.finish().empty());
}

TEST(ToolCallParser, a_long_object_that_is_no_call_is_not_held_back) {
  ToolCallParser parser(plan());
  EXPECT_TRUE(parser.push("{\"name\": \"").empty());
  EXPECT_GT(parser.push(std::string(400, 'a')).text.size(), 400U);
}

}  // namespace
}  // namespace lorry
