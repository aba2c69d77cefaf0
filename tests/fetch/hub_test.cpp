#include "fetch/hub.h"

#include <filesystem>

#include "fetch/hub_test_base.h"

namespace lorry {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

TEST_F(HubTest, an_adapter_is_fetched_into_the_layout_of_huggingface_hub) {
  hub_.start();
  const Fetched fetched = resolve();
  const std::string commit(40, 'a');
  EXPECT_EQ(fetched.revision, commit);
  EXPECT_EQ(fetched.folder, repo_folder() + "/snapshots/" + commit);
  EXPECT_EQ(fetched.downloaded_bytes, 200'000 + 21);
  expect_fetched(fetched);
  EXPECT_EQ(read_file(repo_folder() + "/refs/main"), commit);
  EXPECT_EQ(fs::read_symlink(join_path(fetched.folder, "adapter_model.safetensors")),
            "../../blobs/" + sha256_of(weights().content));
  EXPECT_EQ(fs::read_symlink(join_path(fetched.folder, "adapter_config.json")),
            "../../blobs/" + git_sha1_of(R"({"peft_type": "LORA"})"));
  EXPECT_TRUE(file_exists(
      path("cache/.locks/models--org--name/" + sha256_of(weights().content) + ".lock")));
  EXPECT_EQ(hub_.server.count("GET", "README.md"), 0U);
  EXPECT_EQ(hub_.server.count("HEAD", "README.md"), 0U);
}

TEST_F(HubTest, a_hash_of_git_is_what_git_says) {
  // git hash-object on "hello\n".
  EXPECT_EQ(git_sha1_of("hello\n"), "ce013625030ba8dba906f756967f9e9ca394464a");
}

TEST_F(HubTest, what_the_cache_has_costs_one_request) {
  hub_.start();
  resolve();
  hub_.server.forget_requests();
  const Fetched again = resolve();
  EXPECT_EQ(again.downloaded_bytes, 0);
  expect_fetched(again);
  EXPECT_EQ(hub_.server.requests().size(), 1U);
}

TEST_F(HubTest, a_branch_a_tag_and_a_commit_are_revisions) {
  const std::string old(40, 'b');
  hub_.commits[old] = hub_.commits[std::string(40, 'a')];
  hub_.commits[old]["adapter_config.json"].content = R"({"peft_type": "OLD"})";
  hub_.revisions["v1.0"] = old;
  hub_.revisions["refs/pr/3"] = old;
  hub_.start();
  EXPECT_EQ(resolve("org/name@v1.0").revision, old);
  EXPECT_EQ(resolve("org/name@" + old).revision, old);
  EXPECT_EQ(resolve("org/name@refs/pr/3").revision, old);
  EXPECT_EQ(resolve("org/name").revision, std::string(40, 'a'));
  EXPECT_EQ(hub_.server.count("GET", "adapter_model.safetensors"), 1U);  // the same content
  options_.offline = true;
  EXPECT_EQ(resolve("org/name@v1.0").revision, old);
  EXPECT_EQ(resolve("org/name@refs/pr/3").revision, old);
  EXPECT_EQ(read_file(join_path(resolve("org/name@" + old).folder, "adapter_config.json")),
            R"({"peft_type": "OLD"})");
}

TEST_F(HubTest, a_branch_that_moved_gets_another_folder_and_the_old_one_stays) {
  hub_.start();
  const Fetched before = resolve();
  {
    const auto guard = hub_.lock();
    const std::string next(40, 'c');
    hub_.commits[next] = hub_.commits[std::string(40, 'a')];
    hub_.commits[next]["adapter_model.safetensors"].content = noise(1000, 7);
    hub_.revisions["main"] = next;
  }
  const Fetched after = resolve();
  EXPECT_NE(after.folder, before.folder);
  EXPECT_EQ(read_file(join_path(after.folder, "adapter_model.safetensors")), noise(1000, 7));
  expect_fetched(before);
}

TEST_F(HubTest, other_weights_are_fetched_only_where_none_has_the_usual_name) {
  FakeHub::Files& files = hub_.commits.begin()->second;
  files["extra.safetensors"] = {.content = noise(50)};
  files["checkpoint-5/adapter_model.safetensors"] = {.content = noise(60)};
  hub_.start();
  const Fetched usual = resolve();
  EXPECT_FALSE(file_exists(join_path(usual.folder, "extra.safetensors")));
  {
    const auto guard = hub_.lock();
    const std::string next(40, 'd');
    hub_.commits[next] = files;
    hub_.commits[next].erase("adapter_model.safetensors");
    hub_.revisions["main"] = next;
  }
  const Fetched other = resolve();
  EXPECT_EQ(read_file(join_path(other.folder, "extra.safetensors")), noise(50));
  EXPECT_FALSE(is_directory(join_path(other.folder, "checkpoint-5")));
}

TEST_F(HubTest, a_speculator_is_fetched_and_a_model_is_refused_before_its_weights) {
  FakeHub::Files& files = hub_.commits.begin()->second;
  files = {{"config.json", {.content = R"({"medusa_num_heads": 3})"}},
           {"medusa_lm_head.safetensors", {.content = noise(500), .is_lfs = true}}};
  hub_.commits[std::string(40, 'e')] = {
      {"config.json", {.content = R"({"model_type": "mixtral"})"}},
      {"model-00001-of-00002.safetensors", {.content = noise(700), .is_lfs = true}}};
  hub_.start();
  const Fetched fetched = resolve();
  EXPECT_EQ(read_file(join_path(fetched.folder, "medusa_lm_head.safetensors")), noise(500));
  const Error error = error_of_resolve("org/name@" + std::string(40, 'e'));
  EXPECT_EQ(error.code(), Code::unsupported);
  EXPECT_THAT(error.what(), HasSubstr("neither an adapter nor a speculator"));
  EXPECT_EQ(hub_.server.count("GET", "model-00001"), 0U);
}

TEST_F(HubTest, a_repository_without_an_adapter_is_not_found) {
  hub_.commits.begin()->second = {{"README.md", {.content = "words"}}};
  hub_.start();
  const Error error = error_of_resolve();
  EXPECT_EQ(error.code(), Code::not_found);
  EXPECT_THAT(error.what(), HasSubstr("expected adapter_config.json"));
}

TEST_F(HubTest, what_does_not_exist_is_not_found) {
  hub_.start();
  for (const char* name : {"org/other", "org/name@nothing"}) {
    const Error error = error_of_resolve(name);
    EXPECT_EQ(error.code(), Code::not_found) << name;
    EXPECT_THAT(error.what(), HasSubstr("there is no such repository"));
  }
}

TEST_F(HubTest, names_out_of_the_grammar_are_refused_before_a_request) {
  hub_.start();
  for (const std::string name : {"../../x", "/etc", "~", "%2e%2e", "org/name/more", "org//name", "",
                                 "@main", "org/name@", "org/name@../x", "org/name@/x", "org/na..me",
                                 "org/na--me", "org/name@a b", "org/\r\nHost: x", ".hidden/x"}) {
    EXPECT_EQ(error_of_resolve(name).code(), Code::invalid_argument) << name;
  }
  EXPECT_EQ(error_of_resolve(std::string("org/na\0me", 9)).code(), Code::invalid_argument);
  EXPECT_EQ(error_of_resolve(std::string(10'000, 'a')).code(), Code::invalid_argument);
  EXPECT_EQ(hub_.server.requests().size(), 0U);
}

TEST_F(HubTest, a_cache_that_huggingface_hub_wrote_is_used) {
  // As its snapshot_download() leaves it; sizes of links are their targets'.
  const std::string commit(40, 'a');
  const std::string config = R"({"peft_type": "LORA"})";
  for (const std::string sub : {"/refs", "/blobs", "/trees"}) {
    fs::create_directories(repo_folder() + sub);
  }
  fs::create_directories(repo_folder() + "/snapshots/" + commit);
  write_file(repo_folder() + "/refs/main", commit);
  const std::string shown = repo_folder() + "/snapshots/" + commit + "/";
  write_file(weights_blob(), weights().content);
  write_file(blob(git_sha1_of(config)), config);
  fs::create_symlink("../../blobs/" + sha256_of(weights().content),
                     shown + "adapter_model.safetensors");
  fs::create_symlink("../../blobs/" + git_sha1_of(config), shown + "adapter_config.json");
  hub_.start();
  const Fetched fetched = resolve();
  EXPECT_EQ(fetched.downloaded_bytes, 0);
  expect_fetched(fetched);
  options_.offline = true;
  expect_fetched(resolve());
  EXPECT_EQ(hub_.server.requests().size(), 1U);
}

TEST_F(HubTest, a_cache_with_pickle_does_not_hide_what_the_hub_has_now) {
  const std::string before(40, 'b');
  const std::string shown = repo_folder() + "/snapshots/" + before;
  fs::create_directories(shown);
  fs::create_directories(repo_folder() + "/refs");
  write_file(repo_folder() + "/refs/main", before);
  write_file(shown + "/adapter_config.json", "{}");
  write_file(shown + "/adapter_model.bin", "pickle");
  options_.offline = true;
  EXPECT_EQ(error_of_resolve().code(), Code::unsupported);
  options_.offline = false;
  hub_.start();
  expect_fetched(resolve());
}

TEST_F(HubTest, progress_goes_up_to_the_size) {
  hub_.start();
  int64_t last = 0;
  FetchPlan plan;
  const FetchControl control{.plan = [&](const FetchPlan& p) { plan = p; },
                             .progress =
                                 [&](const Progress& p) {
                                   EXPECT_GT(p.done, last);
                                   EXPECT_EQ(p.total, 200'021);
                                   last = p.done;
                                 }};
  resolve("org/name", "", control);
  EXPECT_EQ(last, 200'021);
  EXPECT_EQ(plan.files, 2);
  EXPECT_EQ(plan.total_bytes, 200'021);
  EXPECT_EQ(plan.missing_bytes, 200'021);
  plan = {};
  resolve("org/name", "", control);
  EXPECT_EQ(plan.files, 0) << "nothing to download";
}

TEST_F(HubTest, a_call_that_is_cancelled_ends_soon_and_leaves_what_it_has) {
  spoil_weights([](int, ServerReply& reply) {
    reply.send_bytes = 50'000;
    reply.ending = ServerReply::Ending::hang;
  });
  hub_.start();
  std::atomic<bool> cancelled{false};
  const FetchControl control{.cancelled = &cancelled, .progress = [&](const Progress& p) {
                               if (p.done > 1000) cancelled = true;
                             }};
  options_.network.low_speed_time = std::chrono::seconds(15);
  const auto start = std::chrono::steady_clock::now();
  const Error error = error_of([&] { resolve("org/name", "", control); });
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5));
  EXPECT_EQ(error.code(), Code::unavailable);
  EXPECT_THAT(error.what(), HasSubstr("hub repository org/name: the download was cancelled"));
  expect_nothing_shown();
}

TEST_F(HubTest, a_call_takes_no_longer_than_its_limit) {
  spoil_weights([](int, ServerReply& reply) {
    reply.piece_delay = std::chrono::milliseconds(20);  // fast enough, but without end
  });
  hub_.start();
  options_.network.total_timeout = std::chrono::milliseconds(700);
  const auto start = std::chrono::steady_clock::now();
  const Error error = error_of_resolve();
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(4));
  EXPECT_EQ(error.code(), Code::unavailable);
  EXPECT_THAT(error.what(), HasSubstr("limit of 700 ms"));
}

TEST_F(HubTest, an_endpoint_that_is_no_hub_is_an_error) {
  hub_.fault = [](const ServerRequest&, ServerReply& reply) { reply.body = "<html></html>"; };
  hub_.start();
  EXPECT_EQ(error_of_resolve().code(), Code::bad_file);
  {
    const auto guard = hub_.lock();
    hub_.fault = [](const ServerRequest& request, ServerReply& reply) {
      if (request.method == "HEAD") reply.headers["X-Linked-Etag"] = "\"../../../x\"";
    };
  }
  const Error error = error_of_resolve();
  EXPECT_EQ(error.code(), Code::bad_file);
  EXPECT_THAT(error.what(), HasSubstr("the endpoint is no Hugging Face hub"));
  options_.endpoint = "ftp://127.0.0.1/";
  EXPECT_EQ(error_of_resolve().code(), Code::invalid_argument);
}

}  // namespace
}  // namespace lorry
