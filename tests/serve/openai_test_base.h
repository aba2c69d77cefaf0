// Requests to the OpenAI routes of a server over a scripted backend.
#pragma once
#include <string>

#include "serve/server_test_base.h"

namespace lorry {

inline constexpr const char* kMessages = R"("messages":[{"role":"user","content":"hi"}])";

class OpenAi : public ServerTest {
 protected:
  Reply chat(const std::string& more = "") {
    return post("/v1/chat/completions", std::string("{") + kMessages + more + "}");
  }
  Reply complete(const std::string& more = "", const std::string& prompt = "\"hi\"") {
    return post("/v1/completions", "{\"prompt\":" + prompt + more + "}");
  }
  json::object error_of(const Reply& reply, int status = 400) {
    EXPECT_EQ(reply.status, status) << reply.body;
    if (reply.status == 200) return {};
    const json::object error = reply.json().as_object().at("error").as_object();
    for (const char* key : {"message", "type", "param", "code"}) EXPECT_TRUE(error.contains(key));
    return error;
  }
  std::string message_of(const Reply& reply, int status = 400) {
    const json::object error = error_of(reply, status);
    return error.empty() ? "accepted" : std::string(error.at("message").as_string());
  }
  std::string chat_refusal(const std::string& more) { return message_of(chat(more)); }
  std::string messages_refusal(const std::string& messages) {
    return message_of(post("/v1/chat/completions", "{\"messages\":" + messages + "}"));
  }
  // An engine that says `text`, having found `stop` in it.
  void say_until(const std::string& text, const std::string& stop) {
    backend.set_plan([this, text, stop](const Request& request) {
      Script script = backend.say(text, request);
      script.tokens.pop_back();
      script.finish.reason = FinishReason::stop_sequence;
      script.finish.stop_sequence = stop;
      return script;
    });
  }
};

}  // namespace lorry
