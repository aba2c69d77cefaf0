// Keys and tenants; the names are rows of the list of bad inputs, section H.
#include "serve/keys.h"

#include "serve/server_test_base.h"

namespace lorry {
namespace {

using testing::HasSubstr;
using testing::Not;

constexpr const char* kBody = R"({"inputs":"hi","parameters":{"max_new_tokens":2}})";

class Keys : public ServerTest {
 protected:
  Keys() {
    options.keys = {parse_api_key("alice:key-of-alice", 1), parse_api_key("bob:key-of-bob", 2),
                    parse_api_key("root:key-of-root:admin", 3)};
    options.adapter_root = "/tmp";
  }
  static std::string bearer(const std::string& key) {
    return "Authorization: Bearer " + key + "\r\n";
  }
  Reply ask(const std::string& headers, const std::string& path = "/generate",
            const std::string& body = kBody) {
    return Client(port()).post(path, body, headers);
  }
  Reply get_with(const std::string& headers, const std::string& path) {
    Client client(port());
    client.send("GET " + path + " HTTP/1.1\r\nHost: localhost\r\n" + headers + "\r\n");
    return client.read_reply();
  }
};

TEST_F(Keys, H1_wrong_or_missing_keys_are_401_and_both_headers_are_taken) {
  for (const std::string& wrong :
       {std::string(), bearer("key-of-mallory"), bearer("KEY-OF-ALICE"), bearer("key-of-alice2"),
        bearer("key-of-alic"), bearer("alice:key-of-alice"), std::string("X-Api-Key: nope\r\n"),
        std::string("Authorization: Basic key-of-alice\r\n"), std::string("X-Api-Key:\r\n"),
        std::string("Authorization: key-of-alice\r\n"), std::string("Authorization: Bearer\r\n")}) {
    const Reply reply = ask(wrong);
    EXPECT_EQ(reply.status, 401) << wrong;
    EXPECT_THAT(reply.body, HasSubstr(R"("error_type":"authentication_error")"));
    EXPECT_EQ(reply.headers.at("www-authenticate"), "Bearer");
    EXPECT_EQ(reply.headers.count("x-request-id"), 1U);
  }
  for (const std::string& right :
       {bearer("key-of-alice"), std::string("authorization: bearer key-of-alice\r\n"),
        std::string("Authorization: BEARER   key-of-bob\r\n"),
        std::string("X-Api-Key: key-of-bob\r\n"),
        "X-Api-Key: key-of-bob\r\n" + bearer("a token of the hub")}) {
    EXPECT_EQ(ask(right).status, 200) << right;
  }
  const Reply openai = ask("", "/v1/completions", R"({"prompt":"a"})");
  EXPECT_EQ(openai.status, 401);
  EXPECT_EQ(openai.json().at("error").at("type").as_string(), "authentication_error");
  EXPECT_EQ(openai.json().at("error").at("code").as_string(), "invalid_api_key");
}

TEST_F(Keys, H1b_the_bearer_is_no_hub_token_where_the_server_has_keys) {
  const std::string body = R"({"inputs":"hi","parameters":{"adapter_id":"a/b",
      "adapter_source":"hub")";
  options.adapters.sources = {AdapterSource::local, AdapterSource::hub};
  EXPECT_EQ(ask(bearer("key-of-alice"), "/generate", body + "}}").status, 200);
  EXPECT_EQ(backend.last().adapter.parts.at(0).api_token, "");
  EXPECT_EQ(ask(bearer("key-of-alice"), "/generate", body + R"(,"api_token":"hf_x"}})").status,
            200);
  EXPECT_EQ(backend.last().adapter.parts.at(0).api_token, "hf_x");
  EXPECT_EQ(ask("X-Api-Key: key-of-bob\r\n" + bearer("hf_y"), "/generate", body + "}}").status,
            200);
  EXPECT_EQ(backend.last().adapter.parts.at(0).api_token, "");
}

TEST_F(Keys, H2_keys_are_compared_by_their_hash_in_constant_time) {
  const ApiKey key = parse_api_key("a:secret", 1);
  EXPECT_EQ(to_hex(key.digest), "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b");
  EXPECT_THAT(key.secret, Not(HasSubstr("secret")));
  Digest other = key.digest;
  EXPECT_TRUE(equal_in_constant_time(key.digest, other));
  other.back() ^= 1;
  EXPECT_FALSE(equal_in_constant_time(key.digest, other));
  const KeyRing ring({key}, 0);
  EXPECT_NE(ring.find("secret"), nullptr);
  for (const char* wrong : {"", "Secret", "SECRET", "secre", "secret "}) {
    EXPECT_EQ(ring.find(wrong), nullptr) << wrong;
  }
}

TEST_F(Keys, H3_every_other_route_is_401_without_a_key) {
  for (const char* path : {"/health", "/ping"}) EXPECT_EQ(get(path).status, 200) << path;
  for (const char* path : {"/", "/info", "/version", "/metrics", "/v1/models", "/v1/models/tiny",
                           "/v1/adapters", "/no/such/path", "/health/", "//health", "/generate"}) {
    EXPECT_EQ(get(path).status, 401) << path;
  }
  for (const char* path :
       {"/", "/invocations", "/generate", "/generate_stream", "/tokenize", "/v1/completions",
        "/v1/chat/completions", "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/health"}) {
    EXPECT_EQ(post(path, "{}").status, 401) << path;
  }
  EXPECT_EQ(get_with(bearer("key-of-alice"), "/metrics").status, 200);
  EXPECT_EQ(get_with(bearer("key-of-alice"), "/no/such/path").status, 404);
}

TEST_F(Keys, H3_metrics_may_be_public) {
  options.metrics_public = true;
  EXPECT_EQ(get("/metrics").status, 200);
  EXPECT_EQ(get("/info").status, 401);
}

TEST_F(Keys, H5_prefixes_are_cached_per_key_and_cache_salt) {
  const auto salt = [&](const std::string& key, const std::string& field) {
    EXPECT_EQ(ask(bearer(key), "/v1/completions", R"({"prompt":"hello")" + field + "}").status,
              200);
    return backend.last().cache_salt;
  };
  const std::string alice = salt("key-of-alice", "");
  EXPECT_EQ(salt("key-of-alice", ""), alice);
  EXPECT_NE(salt("key-of-bob", ""), alice);
  EXPECT_NE(salt("key-of-alice", R"(,"cache_salt":"x")"), alice);
  EXPECT_NE(salt("key-of-bob", R"(,"cache_salt":"x")"),
            salt("key-of-alice", R"(,"cache_salt":"x")"));
  EXPECT_THAT(alice, Not(HasSubstr("key-of-alice")));
}

TEST_F(Keys, H5_without_keys_the_field_alone_is_the_salt) {
  options.keys.clear();
  ask("", "/v1/completions", R"({"prompt":"hello","cache_salt":"x"})");
  EXPECT_EQ(backend.last().cache_salt, "x");
  EXPECT_EQ(backend.last().tenant, 0U);
}

TEST_F(Keys, H6_each_key_is_a_tenant_with_a_limit_of_its_own) {
  options.max_requests_per_key = 2;
  run_for_ever();
  std::vector<std::unique_ptr<Client>> clients;
  for (int i = 0; i < 2; ++i) {
    clients.push_back(std::make_unique<Client>(port()));
    clients.back()->send_post("/generate_stream", R"({"inputs":"hi"})", bearer("key-of-alice"));
    EXPECT_TRUE(eventually([&] { return backend.running() == clients.size(); }));
  }
  EXPECT_EQ(backend.last().tenant, 1U);
  const Reply refused = ask(bearer("key-of-alice"));
  EXPECT_EQ(refused.status, 429);
  EXPECT_THAT(refused.body, HasSubstr("overloaded"));
  EXPECT_EQ(refused.headers.count("retry-after"), 1U);
  // Another key has its own, of which several answers of one request all count.
  clients.push_back(std::make_unique<Client>(port()));
  clients.back()->send_post("/v1/completions", R"({"prompt":"a","n":2})", bearer("key-of-bob"));
  EXPECT_TRUE(eventually([&] { return backend.running() == 4; }));
  EXPECT_EQ(backend.last().tenant, 2U);
  EXPECT_EQ(ask(bearer("key-of-bob")).status, 429);
  EXPECT_EQ(ask(bearer("key-of-root"), "/v1/completions", R"({"prompt":"a","n":3})").status, 400);
  // What was held is given back: by clients that leave, and by answers.
  clients.clear();
  EXPECT_TRUE(eventually([&] { return backend.running() == 0; }));
  backend.set_plan([this](const Request& request) { return backend.say("a", request); });
  for (int i = 0; i < 5; ++i) {
    EXPECT_TRUE(eventually([&] { return ask(bearer("key-of-alice")).status == 200; }));
    EXPECT_EQ(ask(bearer("key-of-bob"), "/generate", "{").status, 400);
  }
}

TEST_F(Keys, H10_adapters_are_managed_with_an_admin_key) {
  const std::string body = R"({"lora_name":"known","lora_path":"."})";
  for (const char* path : {"/v1/load_lora_adapter", "/v1/unload_lora_adapter"}) {
    const Reply refused = ask(bearer("key-of-alice"), path, body);
    EXPECT_EQ(refused.status, 403) << path;
    EXPECT_THAT(refused.body, HasSubstr("permission_error"));
  }
  EXPECT_TRUE(backend.loads().empty());
  EXPECT_EQ(ask(bearer("key-of-root"), "/v1/unload_lora_adapter", body).status, 200);
}

TEST(ApiKeys, are_read_from_lines) {
  const auto keys = parse_api_keys("# ours\r\nalice:one\r\n\nroot:two:admin\nthree  \n", "f", 1);
  ASSERT_EQ(keys.size(), 3U);
  EXPECT_EQ(keys[0].name, "alice");
  EXPECT_FALSE(keys[0].admin);
  EXPECT_TRUE(keys[1].admin);
  EXPECT_EQ(keys[2].name, "key-3");
  EXPECT_NE(KeyRing(keys, 0).find("three"), nullptr);
}

TEST(ApiKeys, that_make_no_sense_are_refused_without_being_told) {
  for (const std::string& wrong :
       {std::string(), std::string(":hidden"), std::string("a:"), std::string("a::admin"),
        std::string("a:hidden:root"), std::string("a b:hidden"), std::string("a:hid den"),
        std::string("hidd\xc3\xa9n"), std::string("a:hidden\x01")}) {
    try {
      parse_api_key(wrong, 7);
      ADD_FAILURE() << wrong;
    } catch (const Error& e) {
      EXPECT_THAT(e.what(), HasSubstr("API key 7"));
      EXPECT_THAT(e.what(), Not(HasSubstr("hidden")));
    }
  }
  EXPECT_THROW(parse_api_keys("# nothing\n", "f", 1), Error);
  EXPECT_THROW(KeyRing({parse_api_key("a:x", 1), parse_api_key("a:y", 2)}, 0), Error);
  EXPECT_THROW(KeyRing({parse_api_key("a:x", 1), parse_api_key("b:x", 2)}, 0), Error);
}

}  // namespace
}  // namespace lorry
