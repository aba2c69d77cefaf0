// The description of the API says what the server does: it is made of the same tables.
#include "serve/openapi.h"

#include "serve/server_test_base.h"

namespace lorry {
namespace {

using testing::HasSubstr;

class OpenApi : public ServerTest {
 protected:
  json::value document() { return get("/api-doc/openapi.json").json(); }
};

TEST_F(OpenApi, every_field_is_described_with_its_type_and_range) {
  const json::value all = document();
  const json::object& schemas = all.at_pointer("/components/schemas").as_object();
  const auto& generate =
      schemas.at("GenerateRequest").at_pointer("/properties/parameters/properties");
  const std::map<Api, const json::object*> of = {
      {Api::lorax, &generate.as_object()},
      {Api::chat, &schemas.at("ChatRequest").at("properties").as_object()},
      {Api::completions, &schemas.at("CompletionRequest").at("properties").as_object()}};
  for (const FieldRule& rule : field_table()) {
    for (const auto& [api, properties] : of) {
      if ((rule.apis & static_cast<unsigned>(api)) == 0) continue;
      EXPECT_TRUE(properties->contains({rule.name.data(), rule.name.size()})) << rule.name;
    }
  }
  EXPECT_EQ(of.at(Api::lorax)->at("top_p").at("exclusiveMinimum").to_number<double>(), 0);
  EXPECT_EQ(of.at(Api::lorax)->at("top_p").at("maximum").to_number<double>(), 1);
  EXPECT_EQ(of.at(Api::chat)->at("top_logprobs").at("maximum").to_number<double>(), 20);
  EXPECT_EQ(of.at(Api::lorax)->at("temperature").at("default").to_number<double>(), 1);
}

TEST_F(OpenApi, every_described_route_is_there_and_answers_as_described) {
  const json::value all = document();
  for (const auto& [path, methods] : all.at("paths").as_object()) {
    for (const auto& [method, operation] : methods.as_object()) {
      const std::string where(path);
      const Reply reply = method == "get" ? get(where) : post(where, "{}");
      const json::object& described = operation.at("responses").as_object();
      EXPECT_TRUE(described.contains(std::to_string(reply.status)))
          << method << " " << where << ": " << reply.status;
    }
  }
}

TEST_F(OpenApi, the_page_needs_nothing_from_elsewhere) {
  const Reply page = get("/docs");
  EXPECT_EQ(page.status, 200);
  EXPECT_THAT(page.headers.at("content-type"), HasSubstr("text/html"));
  EXPECT_THAT(page.headers.at("content-security-policy"), HasSubstr("default-src 'none'"));
  for (const char* text : {"/v1/chat/completions", "repetition_penalty", "422"}) {
    EXPECT_THAT(page.body, HasSubstr(text));
  }
  EXPECT_EQ(page.body.find("http://"), std::string::npos);
  EXPECT_EQ(page.body.find("https://"), std::string::npos);
}

}  // namespace
}  // namespace lorry
