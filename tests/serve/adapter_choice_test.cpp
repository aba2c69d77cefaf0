// Which adapter a request asks for: LoRAX's routes; what /v1 has of its own is in openai_api_test.
#include "serve/lorax_test_base.h"

namespace lorry {
namespace {

using testing::HasSubstr;

TEST_F(Lorax, an_adapter_is_passed_on_and_told_in_a_header) {
  const Reply reply = generate(R"({"adapter_id":"org/pirate","adapter_source":"local"})");
  EXPECT_EQ(backend.last().adapter.label(), "org/pirate");
  EXPECT_EQ(reply.headers.at("x-adapter-id"), "org/pirate");
  EXPECT_EQ(reply.headers.at("x-adapter-source"), "local");
}

TEST_F(Lorax, a_bad_adapter_is_424) {
  for (const Code code : {Code::not_found, Code::bad_file, Code::unsupported}) {
    backend.set_plan([code](const Request&) { return ScriptedBackend::failing(code, "no good"); });
    const Reply reply = generate(R"({"adapter_id":"x"})");
    EXPECT_EQ(reply.status, 424);
    EXPECT_EQ(reply.body, R"({"error":"Request failed during generation: no good",)"
                          R"("error_type":"generation"})");
    // Before the first event a stream's error has a status too.
    EXPECT_EQ(post("/generate_stream", R"({"inputs":"a","parameters":{"adapter_id":"x"}})").status,
              424);
  }
  EXPECT_EQ(generate(R"({"adapter_id":"x","adapter_source":"pbase"})").status, 424);
}

TEST_F(Lorax, F6_adapter_ids_that_are_no_names_are_refused) {
  for (const char* id :
       {"../../x", "/etc", "~", "a\\u0000b", "%2e%2e", "a\\r\\nb", "a/b/c", "a/.."}) {
    EXPECT_THAT(refusal(std::string(R"({"adapter_id":")") + id + "\"}"), HasSubstr("adapter"))
        << id;
  }
  refusal(R"({"adapter_id":")" + std::string(10000, 'a') + "\"}");
}

TEST_F(Lorax, source_and_token_are_passed_on) {
  options.adapters.sources = {AdapterSource::local, AdapterSource::hub, AdapterSource::s3};
  generate(R"({"adapter_id":"org/a@v2","adapter_source":"hub","api_token":"hf_mine"})");
  AdapterPart part = backend.last().adapter.parts.at(0);
  EXPECT_EQ(part.source, AdapterSource::hub);
  EXPECT_EQ(part.api_token, "hf_mine");
  generate(R"({"adapter_id":"bucket/p","adapter_source":"s3"})");
  EXPECT_EQ(backend.last().adapter.parts.at(0).source, AdapterSource::s3);
  EXPECT_THAT(refusal(R"({"adapter_id":"a","adapter_source":"ftp"})"), HasSubstr("local, hub, s3"));
}

TEST_F(Lorax, H1b_the_bearer_is_the_hub_token_where_the_server_has_no_keys) {
  options.adapters.sources.push_back(AdapterSource::hub);
  const auto token_for = [&](const std::string& parameters, const std::string& bearer) {
    Client(port()).post("/generate", R"({"inputs":"a","parameters":)" + parameters + "}",
                        "Authorization: " + bearer + "\r\n");
    return backend.last().adapter.parts.at(0).api_token;
  };
  const std::string hub = R"({"adapter_id":"org/a","adapter_source":"hub")";
  EXPECT_EQ(token_for(hub + "}", "Bearer hf_x"), "hf_x");
  EXPECT_EQ(token_for(hub + "}", "bearer hf_x"), "hf_x");
  EXPECT_EQ(token_for(hub + R"(,"api_token":"hf_y"})", "Bearer hf_x"), "hf_y");
  EXPECT_EQ(token_for(R"({"adapter_id":"a"})", "Bearer hf_x"), "");
}

TEST_F(Lorax, F7_sources_that_are_not_configured_are_refused) {
  EXPECT_EQ(generate(R"({"adapter_id":"org/a","adapter_source":"hub"})").status, 424);
  EXPECT_EQ(generate(R"({"adapter_id":"a/b","adapter_source":"s3"})").status, 424);
  refusal(R"({"adapter_id":"a","adapter_source":"http://10.0.0.1/"})");
  EXPECT_TRUE(backend.submitted().empty());
}

TEST_F(Lorax, F15_only_allowed_adapters_where_there_is_a_list) {
  options.adapters.allowed = {"org/*", "sql", "a*c@v1"};
  for (const char* id : {"org/x", "org/x@main", "sql", "abc@v1"}) {
    EXPECT_EQ(generate(fmt::format(R"({{"adapter_id":"{}"}})", id)).status, 200) << id;
  }
  for (const char* id : {"orgx/x", "sql2", "abc@v2", "other"}) {
    const Reply reply = generate(fmt::format(R"({{"adapter_id":"{}"}})", id));
    EXPECT_EQ(reply.status, 424) << id;
    EXPECT_THAT(reply.body, HasSubstr("not on this server's list"));
  }
  EXPECT_EQ(generate(R"({"merged_adapters":{"ids":["sql","other"]}})").status, 424);
  EXPECT_EQ(generate("{}").status, 200);
}

TEST_F(Lorax, a_default_adapter_serves_who_names_none) {
  options.adapters.default_adapter = "house";
  generate("{}");
  EXPECT_EQ(backend.last().adapter.label(), "house");
  generate(R"({"adapter_id":""})");
  EXPECT_EQ(backend.last().adapter.label(), "house");
  generate(R"({"adapter_id":"__base_model__"})");
  EXPECT_TRUE(backend.last().adapter.empty());
}

TEST_F(Lorax, __base_model___is_no_adapter) {
  generate(R"({"adapter_id":"__base_model__"})");
  EXPECT_TRUE(backend.last().adapter.empty());
}

// Odd ids, unknown strategies and clients that leave are answers with a status, never the end.
TEST_F(Lorax, lorax_fault_15_odd_requests_do_not_end_the_server) {
  for (
      const char* parameters :
      {R"({"adapter_id":"\u0000"})", R"({"adapter_id":"a@"})", R"({"adapter_id":"@a"})",
       R"({"adapter_id":"é"})", R"({"adapter_id":" "})", R"({"adapter_id":"."})",
       R"({"merged_adapters":{"ids":["a"],"merge_strategy":"slerp"}})",
       R"({"merged_adapters":{"ids":["a"],"majority_sign_method":"all","merge_strategy":"ties","density":1}})",
       R"({"merged_adapters":{"ids":[""]}})", R"({"merged_adapters":[]})"}) {
    refusal(parameters);
  }
  backend.set_round(std::chrono::milliseconds(20));
  for (int i = 0; i < 5; ++i) {
    Client leaves(port());
    leaves.send_post("/generate_stream", R"({"inputs":"a","parameters":{"adapter_id":"x"}})");
  }
  EXPECT_EQ(generate("{}").status, 200);
  EXPECT_TRUE(eventually([&] { return backend.running() == 0; }));
}

TEST_F(Lorax, F16_ids_in_headers_are_percent_encoded) {
  EXPECT_EQ(generate(R"({"adapter_id":"org/name@v1.0"})").headers.at("x-adapter-id"),
            "org/name%40v1.0");
  // What could break a header is no name.
  EXPECT_THAT(refusal(R"({"adapter_id":"a\r\nx-evil: 1"})"), HasSubstr("\\x0d\\x0a"));
  EXPECT_THAT(refusal(R"({"adapter_id":"naïve"})"), HasSubstr("\\xc3\\xaf"));
}

TEST_F(Lorax, merged_adapters_and_adapters_become_a_merge) {
  for (const char* field : {"merged_adapters", "adapter_parameters"}) {
    generate(fmt::format(R"({{"{}":{{"ids":["a","b"],"weights":[0.5,-1],"merge_strategy":"ties",)"
                         R"("density":0.5,"majority_sign_method":"frequency"}}}})",
                         field));
    const AdapterRef ref = backend.last().adapter;
    EXPECT_EQ(ref.label(), "ties(a*0.5,b*-1)");
    EXPECT_EQ(ref.merge.density, 0.5);
    EXPECT_EQ(ref.merge.majority_sign, MergeSpec::MajoritySign::frequency);
  }
  const Reply reply = generate(R"({"adapters":[{"id":"a","weight":0.25},{"id":"b"}]})");
  EXPECT_EQ(backend.last().adapter.label(), "cat(a*0.25,b*1)");
  EXPECT_EQ(reply.headers.at("x-adapter-id"), "cat%28a%2A0.25%2Cb%2A1%29");
  generate(R"({"merged_adapters":{"ids":["a"]}})");
  EXPECT_EQ(backend.last().adapter.label(), "linear(a*1)");
}

TEST_F(Lorax, F14_merges_that_make_no_sense_are_refused_in_words) {
  EXPECT_EQ(refusal(R"({"merged_adapters":{"ids":[]}})"),
            "at least one adapter ID must be provided when setting `adapters`");
  EXPECT_EQ(refusal(R"({"merged_adapters":{"ids":["a","b"],"weights":[1]}})"),
            "number of adapter IDs must match number of adapter weights");
  EXPECT_EQ(refusal(R"({"adapter_id":"a","adapter_parameters":{"ids":["a"]}})"),
            "at most one of `adapter_id` or `adapters` may be provided");
  EXPECT_THAT(refusal(R"({"merged_adapters":{"ids":["a"],"merge_strategy":"best"}})"),
              HasSubstr("linear, cat, ties"));
  // LoRAX's default density, 0, would leave nothing of the adapters.
  EXPECT_THAT(refusal(R"({"merged_adapters":{"ids":["a"],"merge_strategy":"ties"}})"),
              HasSubstr("`density` must be > 0"));
  for (const char* weight : {"null", "\"x\"", "1e39", "-1e300"}) {
    refusal(fmt::format(R"({{"merged_adapters":{{"ids":["a"],"weights":[{}]}}}})", weight));
    if (weight[0] != 'n')
      refusal(fmt::format(R"({{"adapters":[{{"id":"a","weight":{}}}]}})", weight));
  }
  std::string many = R"("a")";
  for (int i = 0; i < 16; ++i) many += R"(,"a")";
  EXPECT_THAT(refusal(R"({"merged_adapters":{"ids":[)" + many + "]}}"), HasSubstr("at most 16"));
  for (const char* list : {"7", "[]", "[7]", "[{}]", R"([{"id":7}])", R"([{"id":"../x"}])"}) {
    refusal(std::string(R"({"adapters":)") + list + "}");
  }
  refusal(R"({"adapters":[{"id":"a"}],"merged_adapters":{"ids":["a"]}})");
}

}  // namespace
}  // namespace lorry
