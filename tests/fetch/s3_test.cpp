#include "fetch/s3.h"

#include <algorithm>
#include <filesystem>
#include <mutex>

#include "fetch/fake_hub.h"
#include "fetch/fake_server.h"
#include "fetch/support.h"

namespace lorry {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

// A store with one bucket, "bucket", which lists page_size objects at a time. ETags are the first
// half of the content's SHA-256.
class S3Test : public FolderTest {
 protected:
  S3Test() {
    options_ = {.endpoint = server_.origin(),
                .cache_folder = path("cache"),
                .network = fast_network(),
                .limits = small_limits()};
    objects_ = {{"team/a b/adapter_config.json", R"({"peft_type": "LORA"})"},
                {"team/a b/adapter_model.safetensors", noise(150'000)},
                {"team/a b/README.md", "words"},
                {"team/a b/", ""},  // some tools make one for the folder
                {"team/a bc/adapter_model.safetensors", noise(5)}};
  }
  ~S3Test() override { server_.stop(); }

  void start() {
    server_.start([this](const ServerRequest& request) {
      const std::lock_guard lock(mutex_);
      ServerReply reply = answer(request);
      if (fault_) fault_(request, reply);
      return reply;
    });
  }
  Fetched resolve(const std::string& name = "bucket/team/a b",
                  const FetchControl& control = {}) const {
    return S3Source(options_).resolve(name, control);
  }
  Error error_of_resolve(const std::string& name = "bucket/team/a b") const {
    return error_of([&] { resolve(name); });
  }
  void expect_fetched(const Fetched& fetched) const {
    EXPECT_EQ(read_file(join_path(fetched.folder, "adapter_model.safetensors")), noise(150'000));
    EXPECT_EQ(read_file(join_path(fetched.folder, "adapter_config.json")),
              R"({"peft_type": "LORA"})");
    EXPECT_THAT(files_with_end(path("cache"), ".incomplete"), testing::IsEmpty());
  }
  void expect_nothing_shown() const {
    for (const std::string& file : files_with_end(path("cache"), ".json")) {
      EXPECT_THAT(file, HasSubstr(".incomplete/"));
    }
  }

  static std::string etag_of(const std::string& content) { return sha256_of(content).substr(32); }

  ServerReply answer(const ServerRequest& request) const {
    const std::string path = unescape(request.path);
    if (path == "/bucket") return list(request.query);
    const auto found =
        path.starts_with("/bucket/") ? objects_.find(path.substr(8)) : objects_.end();
    if (found == objects_.end()) return error_reply(404, "NoSuchKey");
    const std::string etag = '"' + etag_of(found->second) + '"';
    if (request.header("if-match") != etag) return error_reply(412, "PreconditionFailed");
    ServerReply reply{.headers = {{"ETag", etag}}};
    send_content(request, found->second, reply);
    return reply;
  }

  static ServerReply error_reply(int status, const std::string& code) {
    return {.status = status, .body = "<Error><Code>" + code + "</Code></Error>"};
  }

  ServerReply list(const std::string& query) const {
    const std::string prefix = parameter(query, "prefix");
    const std::string after = parameter(query, "continuation-token");
    EXPECT_EQ(parameter(query, "list-type"), "2");
    EXPECT_EQ(parameter(query, "delimiter"), "/");
    std::string contents;
    std::string next;
    size_t n = 0;
    for (const auto& [key, content] : objects_) {
      if (!key.starts_with(prefix) || (!after.empty() && key <= after)) continue;
      if (n++ == page_size_) {
        contents += "<NextContinuationToken>" + next + "</NextContinuationToken>";
        break;
      }
      const auto announced = sizes_.find(key);
      contents += fmt::format(
          "<Contents><Key>{}</Key><ETag>&quot;{}&quot;</ETag><Size>{}</Size></Contents>", key,
          etag_of(content),
          announced == sizes_.end() ? static_cast<int64_t>(content.size()) : announced->second);
      next = key;
    }
    return {.body = fmt::format("<?xml version=\"1.0\"?>\n<ListBucketResult><IsTruncated>{}"
                                "</IsTruncated>{}</ListBucketResult>",
                                n > page_size_, contents)};
  }

  static std::string unescape(const std::string& text) {
    std::string out;
    for (size_t i = 0; i < text.size(); ++i) {
      if (text[i] == '%') {
        out += static_cast<char>(std::stoi(text.substr(i + 1, 2), nullptr, 16));
        i += 2;
      } else {
        out += text[i];
      }
    }
    return out;
  }
  static std::string parameter(const std::string& query, const std::string& name) {
    const std::string all = "&" + query + "&";
    const size_t at = all.find("&" + name + "=");
    if (at == std::string::npos) return "";
    const size_t first = at + name.size() + 2;
    return unescape(all.substr(first, all.find('&', first) - first));
  }

  std::mutex mutex_;
  std::map<std::string, std::string> objects_;
  std::map<std::string, int64_t> sizes_;  // announced, where they are not the contents'
  size_t page_size_ = 1000;
  std::function<void(const ServerRequest&, ServerReply&)> fault_;
  FakeServer server_;
  S3Source::Options options_;
};

TEST_F(S3Test, an_adapter_is_fetched_once) {
  start();
  const Fetched fetched = resolve();
  expect_fetched(fetched);
  EXPECT_EQ(fetched.downloaded_bytes, 150'000 + 21);
  EXPECT_EQ(fetched.folder, path("cache/s3--bucket/") + fetched.revision);
  EXPECT_EQ(server_.count("GET", "README"), 0U);
  server_.forget_requests();
  for (const std::string name : {"s3://bucket/team/a b", "bucket/team/a b/"}) {
    const Fetched again = resolve(name);
    EXPECT_EQ(again.folder, fetched.folder);
    EXPECT_EQ(again.downloaded_bytes, 0);
  }
  EXPECT_EQ(server_.requests().size(), 2U);  // the listings
}

TEST_F(S3Test, a_changed_object_gets_another_folder) {
  start();
  const Fetched before = resolve();
  {
    const std::lock_guard lock(mutex_);
    objects_["team/a b/adapter_model.safetensors"] = noise(150'000, 9);
  }
  const Fetched after = resolve();
  EXPECT_NE(after.folder, before.folder);
  EXPECT_EQ(read_file(join_path(after.folder, "adapter_model.safetensors")), noise(150'000, 9));
  expect_fetched(before);
}

TEST_F(S3Test, a_listing_of_many_pages_is_read_to_its_end) {
  for (int i = 0; i < 30; ++i) objects_["team/a b/0" + std::to_string(i)] = "x";
  page_size_ = 3;
  start();
  expect_fetched(resolve());
  EXPECT_EQ(server_.requests().size(), 12U + 2U);
}

TEST_F(S3Test, requests_are_signed_where_there_are_keys_and_else_not) {
  options_.region = "eu-central-1";
  options_.credentials = {"AKIDEXAMPLE", "SECRETEXAMPLE", "TOKEN"};
  start();
  resolve();
  for (const ServerRequest& r : server_.requests()) {
    EXPECT_THAT(r.header("authorization"),
                AllOf(HasSubstr("AKIDEXAMPLE/"), HasSubstr("/eu-central-1/s3/aws4_request"),
                      Not(HasSubstr("SECRETEXAMPLE"))));
    EXPECT_EQ(r.header("x-amz-security-token"), "TOKEN");
  }
  options_.credentials = {};
  options_.cache_folder = path("other");
  server_.forget_requests();
  resolve();
  for (const ServerRequest& r : server_.requests()) EXPECT_EQ(r.header("authorization"), "");
}

TEST_F(S3Test, a_store_at_a_path_of_its_host_works) {
  fault_ = [this](const ServerRequest& request, ServerReply& reply) {
    ServerRequest inner = request;
    inner.path = request.path.substr(std::string("/store").size());
    reply = answer(inner);
  };
  options_.endpoint += "/store/";
  start();
  expect_fetched(resolve());
}

TEST_F(S3Test, names_out_of_the_grammar_are_refused_before_a_request) {
  start();
  for (const std::string name : {"", "s3://", "x", "/x/y", "bucket//x", "bucket/../x", "bucket/./x",
                                 "..", "a b/x", "bucket/x\r\ny", "s3:///x"}) {
    EXPECT_EQ(error_of_resolve(name).code(), Code::invalid_argument) << name;
  }
  EXPECT_EQ(server_.requests().size(), 0U);
}

TEST_F(S3Test, what_does_not_exist_is_not_found) {
  start();
  EXPECT_EQ(error_of_resolve("bucket/nothing").code(), Code::not_found);
  const Error error = error_of_resolve("other-bucket/x");
  EXPECT_EQ(error.code(), Code::not_found);
  EXPECT_THAT(error.what(), HasSubstr("NoSuchKey"));
}

TEST_F(S3Test, F5_pickle_only_is_refused) {
  objects_["team/a b/adapter_model.bin"] = "pickle";
  objects_.erase("team/a b/adapter_model.safetensors");
  start();
  EXPECT_THAT(error_of_resolve().what(),
              HasSubstr("pickle adapters are refused; convert to safetensors"));
}

TEST_F(S3Test, F7_a_redirect_is_not_followed) {
  FakeServer other;
  other.start([](const ServerRequest&) { return ServerReply{}; });
  fault_ = [&other](const ServerRequest&, ServerReply& reply) {
    reply = {
        .status = 301,
        .headers = {{"Location", other.origin() + "/x"}, {"x-amz-bucket-region", "eu-west-3"}}};
  };
  options_.credentials = {"AKIDEXAMPLE", "SECRETEXAMPLE"};
  start();
  const Error error = error_of_resolve();
  EXPECT_EQ(error.code(), Code::invalid_argument);
  EXPECT_THAT(error.what(), HasSubstr("eu-west-3"));
  EXPECT_EQ(other.requests().size(), 0U);
}

TEST_F(S3Test, F8_sizes_are_checked_before_the_download) {
  sizes_["team/a b/adapter_model.safetensors"] = int64_t{50} << 30;
  start();
  const Error error = error_of_resolve();
  EXPECT_EQ(error.code(), Code::bad_file);
  EXPECT_THAT(error.what(), HasSubstr("53.7 GB"));
  EXPECT_EQ(server_.requests().size(), 1U);
  {
    const std::lock_guard lock(mutex_);
    sizes_.clear();
  }
  options_.limits.min_free_bytes = int64_t{1} << 60;
  EXPECT_EQ(error_of_resolve().code(), Code::over_capacity);
}

TEST_F(S3Test, F8_a_listing_without_end_is_refused) {
  fault_ = [](const ServerRequest&, ServerReply& reply) {
    reply.body =
        "<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>x"
        "</NextContinuationToken></ListBucketResult>";
  };
  start();
  EXPECT_EQ(error_of_resolve().code(), Code::bad_file);
  {
    const std::lock_guard lock(mutex_);
    fault_ = {};
    for (int i = 0; i < 200; ++i) objects_["team/a b/" + std::to_string(i)] = "x";
  }
  EXPECT_THAT(error_of_resolve().what(), HasSubstr("more than 100 objects"));
}

TEST_F(S3Test, G2_a_refusal_says_what_to_check_and_no_secret) {
  options_.credentials = {"AKIDEXAMPLE", "SECRETEXAMPLE", "TOKENEXAMPLE"};
  fault_ = [](const ServerRequest&, ServerReply& reply) {
    reply = error_reply(403, "AccessDenied");
  };
  start();
  const Error error = error_of_resolve();
  EXPECT_EQ(error.code(), Code::invalid_argument);
  EXPECT_THAT(error.what(), AllOf(HasSubstr("bucket/team/a b"), HasSubstr("AccessDenied"),
                                  HasSubstr("access key"), Not(HasSubstr("EXAMPLE"))));
}

TEST_F(S3Test, G3_what_breaks_is_tried_again_and_goes_on) {
  fault_ = [n = 0](const ServerRequest& request, ServerReply& reply) mutable {
    if (n++ == 0) {
      reply = error_reply(503, "SlowDown");
    } else if (request.path.ends_with(".safetensors")) {
      reply.send_bytes = 40'000;
      reply.ending = ServerReply::Ending::reset;
    }
  };
  start();
  const Fetched fetched = resolve();
  expect_fetched(fetched);
  EXPECT_EQ(fetched.downloaded_bytes, 150'000 + 21);
  EXPECT_EQ(server_.requests().back().header("range"), "bytes=120000-");
}

TEST_F(S3Test, G3_after_the_last_try_there_is_an_error_and_the_next_call_goes_on) {
  fault_ = [n = 0](const ServerRequest& request, ServerReply& reply) mutable {
    if (!request.path.ends_with(".safetensors") || n++ >= 4) return;
    reply.send_bytes = n == 1 ? 60'000 : 0;
    reply.ending = ServerReply::Ending::reset;
  };
  start();
  EXPECT_EQ(error_of_resolve().code(), Code::unavailable);
  expect_nothing_shown();
  const Fetched fetched = resolve();
  expect_fetched(fetched);
  EXPECT_EQ(fetched.downloaded_bytes, 90'000);
}

TEST_F(S3Test, G4_an_object_that_changes_meanwhile_is_not_mixed) {
  fault_ = [this](const ServerRequest& request, ServerReply& reply) {
    if (!request.path.ends_with(".safetensors") || reply.status == 412) return;
    reply.send_bytes = 10'000;
    reply.ending = ServerReply::Ending::reset;
    objects_["team/a b/adapter_model.safetensors"] = noise(150'000, 5);
  };
  start();
  const Error error = error_of_resolve();
  EXPECT_EQ(error.code(), Code::unavailable);
  EXPECT_THAT(error.what(), HasSubstr("changed while it was being fetched"));
  expect_nothing_shown();
}

TEST_F(S3Test, G6_a_cache_that_is_a_file_is_one_line) {
  write_file(path("cache"), "");
  start();
  EXPECT_THAT(error_of_resolve().what(), HasSubstr("cannot make the folder"));
}

TEST_F(S3Test, G6_a_file_that_went_missing_is_fetched_again) {
  start();
  const Fetched fetched = resolve();
  fs::remove(join_path(fetched.folder, "adapter_config.json"));
  const Fetched again = resolve();
  expect_fetched(again);
  EXPECT_EQ(again.downloaded_bytes, 21);
}

TEST_F(S3Test, G7_names_that_lead_out_of_the_folder_are_refused) {
  fault_ = [](const ServerRequest& request, ServerReply& reply) {
    if (!request.query.empty()) {
      reply.body =
          "<ListBucketResult><Contents><Key>team/a b/../x</Key><Size>1</Size></Contents>"
          "</ListBucketResult>";
    }
  };
  start();
  EXPECT_THAT(error_of_resolve().what(), HasSubstr("leads out of its folder"));
  {
    const std::lock_guard lock(mutex_);
    fault_ = [](const ServerRequest&, ServerReply& reply) {
      reply.body =
          "<ListBucketResult><Contents><Key>/etc/passwd</Key><Size>1</Size></Contents>"
          "</ListBucketResult>";
    };
  }
  EXPECT_THAT(error_of_resolve().what(), HasSubstr("not below it"));
}

}  // namespace
}  // namespace lorry
