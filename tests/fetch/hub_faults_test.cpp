// What goes wrong on the way: rows G1 and G3 to G7 of the bad inputs.
#include <csignal>
#include <filesystem>
#include <thread>

#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fetch/hub.h"
#include "fetch/hub_test_base.h"

namespace lorry {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;
using Clock = std::chrono::steady_clock;

TEST_F(HubTest, G1_offline_uses_the_cache_and_no_network) {
  hub_.start();
  resolve();
  hub_.server.forget_requests();
  options_.offline = true;
  expect_fetched(resolve());
  for (const std::string name : {"org/other", "org/name@v2"}) {
    const Error error = error_of_resolve(name);
    EXPECT_EQ(error.code(), Code::not_found);
    EXPECT_THAT(error.what(),
                AllOf(HasSubstr(name.substr(0, name.find('@'))), HasSubstr("HF_HUB_OFFLINE")));
  }
  EXPECT_EQ(hub_.server.requests().size(), 0U);
}

TEST_F(HubTest, G1_without_network_the_cache_answers) {
  hub_.start();
  resolve();
  hub_.server.stop();
  expect_fetched(resolve());
  const Error error = error_of_resolve("org/other");
  EXPECT_EQ(error.code(), Code::unavailable);
  EXPECT_THAT(error.what(), AllOf(HasSubstr("org/other"), HasSubstr("HF_HUB_OFFLINE")));
}

TEST_F(HubTest, G1_a_folder_with_a_file_missing_is_not_the_adapter) {
  hub_.start();
  const Fetched fetched = resolve();
  fs::remove(weights_blob());
  options_.offline = true;
  EXPECT_EQ(error_of_resolve().code(), Code::not_found);
  options_.offline = false;
  expect_fetched(resolve());
}

TEST_F(HubTest, G3_server_errors_are_tried_again) {
  for (const int status : {429, 500, 503, 504}) {
    SCOPED_TRACE(status);
    FakeHub hub;
    hub.fault = [n = 0, status](const ServerRequest&, ServerReply& reply) mutable {
      if (n++ % 3 < 2) reply = {.status = status};
    };
    hub.start();
    options_.endpoint = hub.server.origin();
    options_.cache_folder = path(std::to_string(status));
    resolve();
    EXPECT_EQ(hub.server.requests().size(), 15U);  // five requests, each at the third try
  }
}

TEST_F(HubTest, G3_after_the_last_try_there_is_an_error) {
  hub_.fault = [](const ServerRequest&, ServerReply& reply) { reply = {.status = 503}; };
  hub_.start();
  const Error error = error_of_resolve();
  EXPECT_EQ(error.code(), Code::unavailable);
  EXPECT_THAT(error.what(), AllOf(HasSubstr("org/name"), HasSubstr("answered 503")));
  EXPECT_EQ(hub_.server.requests().size(), 3U);
}

TEST_F(HubTest, G3_retry_after_is_obeyed_up_to_a_limit) {
  std::vector<Clock::time_point> times;
  hub_.fault = [&](const ServerRequest&, ServerReply& reply) {
    times.push_back(Clock::now());
    if (times.size() == 1) reply = {.status = 429, .headers = {{"Retry-After", "3600"}}};
    if (times.size() == 2) {
      reply = {.status = 429, .headers = {{"Retry-After", "Fri, 01 Jan 2100 00:00:00 GMT"}}};
    }
  };
  hub_.start();
  resolve();
  const auto guard = hub_.lock();
  ASSERT_GE(times.size(), 3U);
  for (size_t i = 1; i < 3; ++i) {  // the limit is 300 ms
    EXPECT_GE(times[i] - times[i - 1], std::chrono::milliseconds(290));
    EXPECT_LT(times[i] - times[i - 1], std::chrono::seconds(5));
  }
}

TEST_F(HubTest, G3_a_download_that_breaks_goes_on_where_it_broke) {
  for (const auto ending : {ServerReply::Ending::reset, ServerReply::Ending::close}) {
    FakeHub hub;
    hub.fault = [ending](const ServerRequest& request, ServerReply& reply) {
      if (request.method == "GET" && request.path.ends_with(".safetensors")) {
        reply.send_bytes = 30'000;  // of each answer: seven are needed, and three tries allowed
        reply.ending = ending;
      }
    };
    hub.start();
    options_.endpoint = hub.server.origin();
    options_.cache_folder = path(std::to_string(static_cast<int>(ending)));
    const Fetched fetched = resolve();
    expect_fetched(fetched);
    EXPECT_EQ(fetched.downloaded_bytes, 200'000 + 21);
    EXPECT_EQ(hub.server.count("GET", "adapter_model.safetensors"), 7U);
    EXPECT_EQ(hub.server.requests().back().header("range"), "bytes=180000-");
  }
}

TEST_F(HubTest, G3_a_transfer_that_stands_still_is_tried_again) {
  spoil_weights([](int n, ServerReply& reply) {
    if (n > 0) return;
    reply.send_bytes = 1000;
    reply.ending = ServerReply::Ending::hang;
  });
  hub_.start();
  expect_fetched(resolve());
  EXPECT_EQ(hub_.server.requests().back().header("range"), "bytes=1000-");
}

TEST_F(HubTest, G3_a_server_that_does_not_answer_is_asked_again) {
  hub_.fault = [n = 0](const ServerRequest&, ServerReply& reply) mutable {
    if (n++ == 0) reply.delay = std::chrono::minutes(1);
  };
  hub_.start();
  expect_fetched(resolve());
  EXPECT_EQ(hub_.server.requests().size(), 6U);
}

TEST_F(HubTest, G3_a_download_that_gets_nowhere_ends_with_an_error_and_is_resumed_later) {
  spoil_weights([](int n, ServerReply& reply) {
    if (n >= 4) return;
    reply.send_bytes = n == 0 ? 70'000 : 0;
    reply.ending = ServerReply::Ending::reset;
  });
  hub_.start();
  const Error error = error_of_resolve();
  EXPECT_EQ(error.code(), Code::unavailable);
  EXPECT_THAT(error.what(), AllOf(HasSubstr("adapter_model.safetensors"), HasSubstr("70000")));
  expect_nothing_shown();
  hub_.server.forget_requests();
  const Fetched fetched = resolve();
  expect_fetched(fetched);
  EXPECT_EQ(fetched.downloaded_bytes, 130'000);
}

TEST_F(HubTest, G3_a_server_without_ranges_is_read_from_the_start) {
  spoil_weights([this](int n, ServerReply& reply) {
    reply.status = 200;
    reply.body = weights().content;
    reply.headers.erase("Content-Range");
    if (n == 0) {
      reply.send_bytes = 150'000;
      reply.ending = ServerReply::Ending::reset;
    }
  });
  hub_.start();
  expect_fetched(resolve());
}

TEST_F(HubTest, G3_a_wrong_range_is_refused) {
  spoil_weights([](int n, ServerReply& reply) {
    if (n == 0) {
      reply.send_bytes = 1000;
      reply.ending = ServerReply::Ending::reset;
    } else {
      reply.headers["Content-Range"] = "bytes 500-199999/200000";
    }
  });
  hub_.start();
  EXPECT_THAT(error_of_resolve().what(), HasSubstr("wrong range"));
  expect_nothing_shown();
}

TEST_F(HubTest, G4_a_wrong_hash_is_tried_once_more_and_then_refused) {
  spoil_weights([](int, ServerReply& reply) { reply.body[7] ^= 1; });
  hub_.start();
  const Error error = error_of_resolve();
  EXPECT_EQ(error.code(), Code::bad_file);
  EXPECT_THAT(error.what(), AllOf(HasSubstr("adapter_model.safetensors"), HasSubstr("SHA-256"),
                                  HasSubstr(sha256_of(weights().content))));
  EXPECT_EQ(hub_.server.count("GET", "adapter_model.safetensors"), 2U);
  EXPECT_THAT(files_with_end(path("cache"), ".incomplete"), testing::IsEmpty());
  EXPECT_FALSE(file_exists(weights_blob()));
  expect_nothing_shown();
}

TEST_F(HubTest, G4_a_hash_that_is_right_the_second_time_is_taken) {
  spoil_weights([](int n, ServerReply& reply) {
    if (n == 0) reply.body[7] ^= 1;
  });
  hub_.start();
  expect_fetched(resolve());
}

TEST_F(HubTest, G4_the_hash_of_git_is_checked_too) {
  hub_.fault = [](const ServerRequest& request, ServerReply& reply) {
    if (request.method == "GET" && request.path.ends_with("adapter_config.json"))
      reply.body[3] = 'X';
  };
  hub_.start();
  const Error error = error_of_resolve();
  EXPECT_EQ(error.code(), Code::bad_file);
  EXPECT_THAT(error.what(), HasSubstr("git SHA-1"));
}

TEST_F(HubTest, G4_rubbish_that_was_left_behind_is_replaced) {
  fs::create_directories(repo_folder() + "/blobs");
  write_file(weights_blob() + ".incomplete", noise(100, 99));      // no beginning of the file
  write_file(blob(git_sha1_of(R"({"peft_type": "LORA"})")), "x");  // not of its size
  hub_.start();
  expect_fetched(resolve());
}

// Forks before the hub's threads start; the child resolves and is killed half way.
TEST_F(HubTest, G5_a_download_that_was_killed_goes_on_where_it_was) {
  spoil_weights([](int n, ServerReply& reply) {
    if (n > 0) return;
    reply.send_bytes = 120'000;
    reply.ending = ServerReply::Ending::hang;
  });
  options_.network.low_speed_time = std::chrono::seconds(15);
  const pid_t child = fork();
  if (child == 0) {
    try {
      resolve();
    } catch (...) {
    }
    _exit(0);
  }
  hub_.start();
  const std::string partial = weights_blob() + ".incomplete";
  for (int i = 0; i < 1000; ++i) {
    std::error_code error;
    if (fs::file_size(partial, error) == 120'000 && !error) break;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  ASSERT_EQ(kill(child, SIGKILL), 0);
  ASSERT_EQ(waitpid(child, nullptr, 0), child);
  EXPECT_EQ(fs::file_size(partial), 120'000U);
  expect_nothing_shown();
  const Fetched fetched = resolve();
  expect_fetched(fetched);
  EXPECT_EQ(fetched.downloaded_bytes, 80'000);
  EXPECT_EQ(hub_.server.requests().back().header("range"), "bytes=120000-");
}

TEST_F(HubTest, G5_two_processes_fetch_a_file_once) {
  spoil_weights([](int, ServerReply& reply) { reply.delay = std::chrono::milliseconds(300); });
  const pid_t child = fork();
  if (child == 0) {
    try {
      resolve();
      _exit(0);
    } catch (...) {
      _exit(1);
    }
  }
  hub_.start();
  expect_fetched(resolve());
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(hub_.server.count("GET", "adapter_model.safetensors"), 1U);
}

TEST_F(HubTest, G5_threads_fetch_a_file_once) {
  spoil_weights([](int, ServerReply& reply) { reply.delay = std::chrono::milliseconds(200); });
  hub_.start();
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([this] { expect_fetched(resolve()); });
  }
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(hub_.server.count("GET", "adapter_model.safetensors"), 1U);
}

// Runs as a user who may not write, also where the tests run as root.
class AsNobody {
 public:
  AsNobody() : before_(geteuid()) { EXPECT_EQ(seteuid(before_ == 0 ? 65534 : before_), 0); }
  ~AsNobody() { EXPECT_EQ(seteuid(before_), 0); }
  AsNobody(const AsNobody&) = delete;
  AsNobody& operator=(const AsNobody&) = delete;

 private:
  uid_t before_;
};

TEST_F(HubTest, G6_a_read_only_cache_is_one_line_or_used_as_it_is) {
  hub_.start();
  fs::create_directories(path("full"));
  options_.cache_folder = path("full");
  resolve();
  fs::create_directories(path("empty"));
  for (const std::string folder : {"", "full", "empty"}) chmod(path(folder).c_str(), 0555);
  for (const auto& entry : fs::recursive_directory_iterator(path("full"))) {
    if (entry.is_directory()) chmod(entry.path().c_str(), 0555);
  }
  {
    const AsNobody nobody;
    EXPECT_EQ(resolve().downloaded_bytes, 0);
    options_.cache_folder = path("empty");
    const Error error = error_of_resolve();
    EXPECT_EQ(error.code(), Code::invalid_argument);
    EXPECT_THAT(error.what(), AllOf(HasSubstr(path("empty")), HasSubstr("may write")));
  }
  for (const std::string folder : {"", "full", "empty"}) chmod(path(folder).c_str(), 0755);
  for (const auto& entry : fs::recursive_directory_iterator(path("full"))) {
    if (entry.is_directory()) chmod(entry.path().c_str(), 0755);
  }
  EXPECT_TRUE(fs::is_empty(path("empty")));
}

TEST_F(HubTest, G6_a_disk_that_gets_full_is_one_line_and_nothing_is_left) {
  hub_.start();
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto handler = signal(SIGXFSZ, SIG_IGN);
  const rlimit small{.rlim_cur = 100'000, .rlim_max = before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  const Error error = error_of_resolve();
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
  signal(SIGXFSZ, handler);
  EXPECT_EQ(error.code(), Code::over_capacity);
  EXPECT_THAT(error.what(), AllOf(HasSubstr("cannot write"), HasSubstr("free some space")));
  EXPECT_THAT(files_with_end(path("cache"), ".incomplete"), testing::IsEmpty());
  expect_nothing_shown();
}

TEST_F(HubTest, G6_links_in_the_way_are_not_followed) {
  fs::create_directories(repo_folder() + "/blobs");
  write_file(path("victim"), "precious");
  fs::create_symlink(path("victim"), weights_blob() + ".incomplete");
  hub_.start();
  const Error error = error_of_resolve();
  EXPECT_EQ(error.code(), Code::invalid_argument);
  EXPECT_THAT(error.what(), HasSubstr("symbolic link"));
  EXPECT_EQ(read_file(path("victim")), "precious");
  expect_nothing_shown();
}

TEST_F(HubTest, G6_a_cache_that_is_a_file_is_one_line) {
  write_file(path("cache"), "");
  hub_.start();
  EXPECT_THAT(error_of_resolve().what(), HasSubstr("cannot make the folder"));
}

TEST_F(HubTest, G7_names_that_lead_out_of_the_folder_are_refused) {
  hub_.start();
  for (const std::string name :
       {"../adapter_config.json", "/etc/passwd", "a/../../b", "..", "a/..", ""}) {
    hub_.change([&] { hub_.also_listed = {name}; });
    const Error error = error_of_resolve();
    EXPECT_EQ(error.code(), Code::bad_file) << name;
    EXPECT_THAT(error.what(), HasSubstr("leads out of its folder"));
  }
  hub_.change([&] { hub_.also_listed = {"a..b", "x/..y/z", "..."}; });
  expect_fetched(resolve());
}

}  // namespace
}  // namespace lorry
