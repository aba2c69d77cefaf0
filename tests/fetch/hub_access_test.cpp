// Who gets what: tokens, private and gated repositories, redirects, limits (rows F5 to F13 of the
// bad inputs, and G2).
#include "fetch/hub.h"
#include "fetch/hub_test_base.h"

namespace lorry {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

TEST_F(HubTest, F5_pickle_only_is_refused) {
  FakeHub::Files& files = hub_.commits.begin()->second;
  files.erase("adapter_model.safetensors");
  files["adapter_model.bin"] = {.content = "pickle"};
  hub_.start();
  const Error error = error_of_resolve();
  EXPECT_EQ(error.code(), Code::unsupported);
  EXPECT_THAT(error.what(), HasSubstr("pickle adapters are refused; convert to safetensors"));
  EXPECT_EQ(hub_.server.requests().size(), 1U);
}

TEST_F(HubTest, F7_the_token_goes_to_the_hub_and_to_no_other_host) {
  FakeServer store;
  store.start([this](const ServerRequest& request) {
    ServerReply reply;
    send_content(request, weights().content, reply);
    return reply;
  });
  hub_.store = store.origin();
  hub_.start();
  expect_fetched(resolve("org/name", "hf_secret"));
  for (const ServerRequest& r : hub_.server.requests()) {
    EXPECT_EQ(r.header("authorization"), "Bearer hf_secret") << r.path;
  }
  ASSERT_EQ(store.requests().size(), 1U);
  EXPECT_EQ(store.requests().front().headers.count("authorization"), 0U);
  EXPECT_EQ(store.requests().front().query, "Signature=secret-signature");
}

TEST_F(HubTest, F7_a_token_does_not_come_back_with_a_redirect_that_returns) {
  FakeServer store;
  store.start([this](const ServerRequest&) {
    return ServerReply{.status = 302, .headers = {{"Location", hub_.server.origin() + "/last"}}};
  });
  hub_.store = store.origin();
  hub_.fault = [this](const ServerRequest& request, ServerReply& reply) {
    if (request.path != "/last") return;
    reply = {};
    send_content(request, weights().content, reply);
  };
  hub_.start();
  expect_fetched(resolve("org/name", "hf_secret"));
  EXPECT_EQ(hub_.server.requests().back().path, "/last");
  EXPECT_EQ(hub_.server.requests().back().headers.count("authorization"), 0U);
}

TEST_F(HubTest, F7_redirects_to_what_is_not_the_web_are_refused) {
  for (const std::string location : {"file:///etc/passwd", "gopher://127.0.0.1/x", ""}) {
    SCOPED_TRACE(location);
    FakeHub hub;
    hub.fault = [location](const ServerRequest& request, ServerReply& reply) {
      if (request.method == "GET" && request.path.ends_with(".safetensors")) {
        reply = {.status = 302, .headers = {{"Location", location}}};
      }
    };
    hub.start();
    options_.endpoint = hub.server.origin();
    EXPECT_NE(error_of_resolve().code(), Code::internal);
    expect_nothing_shown();
  }
}

TEST_F(HubTest, F7_redirects_without_end_are_an_error) {
  hub_.fault = [](const ServerRequest& request, ServerReply& reply) {
    reply = {.status = 307, .headers = {{"Location", request.path + "x"}}};
  };
  hub_.start();
  const Error error = error_of_resolve();
  EXPECT_EQ(error.code(), Code::unavailable);
  EXPECT_THAT(error.what(), HasSubstr("more than 5 redirects"));
}

TEST_F(HubTest, F8_a_size_over_the_limit_is_refused_before_the_download) {
  FakeHub::Files& files = hub_.commits.begin()->second;
  const int64_t huge = int64_t{50} << 30;
  files["adapter_model.safetensors"].size = huge;
  hub_.start();
  for (const bool in_listing : {true, false}) {  // else only the HEAD request tells
    hub_.change([&] { hub_.says_sizes = in_listing; });
    const Error error = error_of_resolve();
    EXPECT_EQ(error.code(), Code::bad_file);
    EXPECT_THAT(error.what(), AllOf(HasSubstr("adapter_model.safetensors"), HasSubstr("53.7 GB")));
  }
  {
    const auto guard = hub_.lock();
    files["adapter_model.safetensors"].size = -1;
    files["adapter_config.json"].size = 20'000;
  }
  EXPECT_THAT(error_of_resolve().what(), HasSubstr("adapter_config.json"));
  EXPECT_EQ(hub_.server.count("GET", "resolve"), 0U);
}

TEST_F(HubTest, F8_the_sum_of_the_sizes_is_limited) {
  FakeHub::Files& files = hub_.commits.begin()->second;
  files.erase("adapter_model.safetensors");
  files["a.safetensors"] = {.content = "a", .is_lfs = true, .size = 900'000};
  files["b.safetensors"] = {.content = "b", .is_lfs = true, .size = 900'000};
  hub_.start();
  const Error error = error_of_resolve();
  EXPECT_EQ(error.code(), Code::bad_file);
  EXPECT_THAT(error.what(), HasSubstr("together"));
  EXPECT_EQ(hub_.server.count("GET", "resolve"), 0U);
}

TEST_F(HubTest, F8_a_length_that_was_not_announced_is_refused_and_leaves_no_file) {
  spoil_weights([](int n, ServerReply& reply) {
    if (n == 0) {
      reply.declared = int64_t{50} << 30;
    } else {
      reply.declared = -2;  // without a length, and longer than announced
      reply.body += "more";
    }
  });
  hub_.start();
  for (int i = 0; i < 2; ++i) {
    const Error error = error_of_resolve();
    EXPECT_EQ(error.code(), Code::bad_file);
    EXPECT_THAT(error.what(), HasSubstr("adapter_model.safetensors"));
    EXPECT_THAT(files_with_end(path("cache"), ".incomplete"), testing::IsEmpty());
    expect_nothing_shown();
  }
}

TEST_F(HubTest, F8_a_listing_without_end_is_refused) {
  hub_.also_listed.assign(200, "x.txt");
  hub_.start();
  EXPECT_THAT(error_of_resolve().what(), HasSubstr("203 files"));
  hub_.change([&] { hub_.also_listed.assign(20'000, "x.txt"); });
  EXPECT_THAT(error_of_resolve().what(), HasSubstr("longer than the 100000 bytes"));
}

TEST_F(HubTest, F8_a_full_disk_is_said_before_the_download) {
  options_.limits.min_free_bytes = int64_t{1} << 60;
  hub_.start();
  const Error error = error_of_resolve();
  EXPECT_EQ(error.code(), Code::over_capacity);
  EXPECT_THAT(error.what(), HasSubstr("free some space"));
  EXPECT_EQ(hub_.server.count("GET", "resolve"), 0U);
}

TEST_F(HubTest, F13_a_private_repository_is_asked_for_with_the_callers_own_token) {
  hub_.is_private = true;
  hub_.tokens = {"hf_of_a"};
  hub_.start();
  expect_fetched(resolve("org/name", "hf_of_a"));
  for (const std::string token : {"hf_of_b", ""}) {
    const Error error = error_of_resolve("org/name", token);
    EXPECT_EQ(error.code(), Code::invalid_argument);
    EXPECT_THAT(error.what(), Not(HasSubstr("hf_of")));
  }
  expect_fetched(resolve("org/name", "hf_of_a"));
  EXPECT_EQ(hub_.server.count("GET", "adapter_model.safetensors"), 1U);
}

TEST_F(HubTest, F13_a_gated_repository_in_the_cache_needs_the_callers_own_token) {
  hub_.is_gated = true;  // its listing is open to all
  hub_.tokens = {"hf_of_a"};
  hub_.start();
  expect_fetched(resolve("org/name", "hf_of_a"));
  EXPECT_EQ(error_of_resolve("org/name", "hf_of_b").code(), Code::invalid_argument);
  EXPECT_EQ(error_of_resolve().code(), Code::invalid_argument);
}

TEST_F(HubTest, F13_a_hub_that_does_not_say_who_may_read_is_asked_each_time) {
  hub_.is_gated = true;
  hub_.says_access = false;
  hub_.tokens = {"hf_of_a"};
  hub_.start();
  expect_fetched(resolve("org/name", "hf_of_a"));
  EXPECT_EQ(error_of_resolve("org/name", "hf_of_b").code(), Code::invalid_argument);
}

TEST_F(HubTest, F13_without_the_hub_the_cache_gives_out_only_what_is_open_to_all) {
  hub_.is_private = true;
  hub_.tokens = {"hf_of_a"};
  hub_.start();
  resolve("org/name", "hf_of_a");
  hub_.server.stop();
  for (const std::string token : {"hf_of_a", "hf_of_b", ""}) {
    EXPECT_EQ(error_of_resolve("org/name", token).code(), Code::unavailable);
  }
  options_.offline = true;  // the operator's word
  expect_fetched(resolve("org/name", "hf_of_b"));
}

TEST_F(HubTest, F13_the_default_token_is_for_callers_without_one) {
  hub_.is_private = true;
  hub_.tokens = {"hf_default"};
  options_.default_token = "hf_default";
  hub_.start();
  expect_fetched(resolve());
  EXPECT_EQ(error_of_resolve("org/name", "hf_other").code(), Code::invalid_argument);
}

TEST_F(HubTest, F13_a_token_with_control_bytes_is_refused_unseen) {
  hub_.start();
  const Error error = error_of_resolve("org/name", "hf_x\r\nHost: evil");
  EXPECT_EQ(error.code(), Code::invalid_argument);
  EXPECT_THAT(error.what(), AllOf(Not(HasSubstr("hf_x")), Not(HasSubstr("evil"))));
  EXPECT_EQ(hub_.server.requests().size(), 0U);
}

TEST_F(HubTest, F13_messages_hold_no_signature_of_a_url) {
  FakeServer store;
  store.start([](const ServerRequest&) { return ServerReply{.status = 403}; });
  hub_.store = store.origin();
  hub_.start();
  const Error error = error_of_resolve("org/name", "hf_secret");
  EXPECT_THAT(error.what(), AllOf(HasSubstr("/lfs/"), Not(HasSubstr("secret"))));
}

TEST_F(HubTest, G2_gated_says_where_to_accept_the_terms) {
  hub_.is_gated = true;
  hub_.start();
  const Error error = error_of_resolve();
  EXPECT_EQ(error.code(), Code::invalid_argument);
  EXPECT_THAT(error.what(), HasSubstr("gated: accept terms at " + hub_.server.origin() +
                                      "/org/name and set HF_TOKEN"));
  EXPECT_THAT(error.what(), HasSubstr("answered 403"));
  expect_nothing_shown();
}

}  // namespace
}  // namespace lorry
