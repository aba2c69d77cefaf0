// Requests to LoRAX's routes of a server over a scripted backend.
#pragma once
#include <string>

#include "serve/server_test_base.h"

namespace lorry {

class Lorax : public ServerTest {
 protected:
  Reply generate(const std::string& parameters) {
    return post("/generate", R"({"inputs":"My name is","parameters":)" + parameters + "}");
  }
  // The refusal's sentence, checked to be a 422 of validation.
  std::string refusal(const std::string& parameters, const std::string& path = "/generate") {
    const Reply reply = post(path, R"({"inputs":"My name is","parameters":)" + parameters + "}");
    EXPECT_EQ(reply.status, 422) << parameters << reply.body;
    if (reply.status == 200) return "accepted";
    const json::object error = reply.json().as_object();
    EXPECT_EQ(error.at("error_type").as_string(), "validation");
    const std::string text(error.at("error").as_string());
    constexpr std::string_view kPrefix = "Input validation error: ";
    EXPECT_TRUE(text.starts_with(kPrefix)) << text;
    return text.substr(kPrefix.size());
  }
};

}  // namespace lorry
