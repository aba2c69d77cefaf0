// `lorry pull`, and models that are named as the hub names them, against a hub in this process.
// Rows of bad inputs: G1 to G7.
#include <algorithm>
#include <chrono>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include "cli/process.h"
#include "fetch/fake_hub.h"
#include "fetch/support.h"

namespace lorry {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

class Pull : public FolderTest {
 protected:
  std::map<std::string, std::string> env(std::map<std::string, std::string> more = {}) const {
    more.insert({{"HF_ENDPOINT", hub_.server.origin()}, {"HF_HUB_CACHE", path("cache")}});
    return more;
  }
  ProcessResult pull(const std::vector<std::string>& flags = {},
                     const std::map<std::string, std::string>& more = {}) const {
    std::vector<std::string> all = {"pull", "org/name"};
    all.insert(all.end(), flags.begin(), flags.end());
    return run_lorry(all, {.env = env(more)});
  }
  // Status 1, nothing on standard output, one line with this text.
  static void expect_refused(const ProcessResult& r, const std::string& text) {
    EXPECT_EQ(r.status, 1) << r.err;
    EXPECT_EQ(r.out, "");
    EXPECT_THAT(r.err, HasSubstr(text));
    const size_t at = r.err.find("lorry: ");
    ASSERT_NE(at, std::string::npos) << r.err;
    EXPECT_EQ(std::count(r.err.begin() + static_cast<std::ptrdiff_t>(at), r.err.end(), '\n'), 1)
        << r.err;
  }
  void expect_pulled(const ProcessResult& r) const {
    ASSERT_EQ(r.status, 0) << r.err;
    ASSERT_TRUE(r.out.ends_with('\n'));
    const std::string folder = r.out.substr(0, r.out.size() - 1);
    EXPECT_EQ(read_file(join_path(folder, "adapter_model.safetensors")), weights());
    EXPECT_TRUE(files_with_end(path("cache"), ".incomplete").empty());
  }
  std::string weights() const {
    return hub_.commits.begin()->second.at("adapter_model.safetensors").content;
  }
  // Changes the answers to GET requests for the weights; `fault` knows which it is, from 0.
  void spoil_weights(std::function<void(int, ServerReply&)> fault) {
    hub_.fault = [fault, n = 0](const ServerRequest& request, ServerReply& reply) mutable {
      if (request.method == "GET" && request.path.ends_with("adapter_model.safetensors")) {
        fault(n++, reply);
      }
    };
  }
  void hang_once() {
    spoil_weights([](int n, ServerReply& reply) {
      if (n > 0) return;
      reply.send_bytes = 50'000;
      reply.ending = ServerReply::Ending::hang;
    });
  }
  // Waits until some of the weights are on the disk.
  void wait_for_a_part() const {
    for (int i = 0; i < 3000; ++i) {
      for (const std::string& file : files_with_end(path("cache"), ".incomplete")) {
        std::error_code error;
        if (fs::file_size(file, error) >= 50'000 && !error) return;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    FAIL() << "nothing has come";
  }
  std::string range_of_last_request() const {
    const auto requests = hub_.server.requests();
    return requests.empty() ? "" : requests.back().header("range");
  }

  FakeHub hub_;
};

TEST_F(Pull, SaysTheSizePrintsTheFolderAndCostsNothingAgain) {
  hub_.start();
  const ProcessResult first = pull();
  expect_pulled(first);
  EXPECT_EQ(first.out, path("cache/models--org--name/snapshots/") + std::string(40, 'a') + "\n");
  EXPECT_THAT(first.err, StartsWith("org/name: adapter of 2 files, 200.0 kB\n"));
  EXPECT_THAT(first.err, HasSubstr("downloaded and verified"));
  EXPECT_THAT(first.err, HasSubstr("--lora-modules NAME="));
  const ProcessResult again = pull();
  EXPECT_EQ(again.out, first.out);
  EXPECT_THAT(again.err, HasSubstr("all of it was here"));
  const ProcessResult quiet = pull({"--quiet"});
  EXPECT_EQ(quiet.out, first.out);
  EXPECT_EQ(quiet.err, "");
}

TEST_F(Pull, TakesARevisionACacheAndAPlaceToPutTheFiles) {
  const std::string old(40, 'b');
  hub_.commits[old] = hub_.commits[std::string(40, 'a')];
  hub_.revisions["v1.0"] = old;
  hub_.start();
  EXPECT_THAT(pull({"--revision", "v1.0"}).out, HasSubstr(old));
  const ProcessResult moved = pull({"--cache", path("elsewhere"), "--to", path("adapter"), "-q"});
  EXPECT_EQ(moved.status, 0) << moved.err;
  EXPECT_EQ(moved.out, path("adapter") + "\n");
  EXPECT_EQ(read_file(path("adapter/adapter_model.safetensors")), weights());
  EXPECT_FALSE(fs::is_symlink(path("adapter/adapter_config.json")));
  EXPECT_EQ(pull({"--cache", path("elsewhere"), "--to", path("adapter")}).status, 0);
  expect_refused(pull({"--to", path("adapter"), "--revision", "v1.0"}), "is there already");
  expect_refused(run_lorry({"pull", "org/name@v1.0", "--revision", "main"}, {.env = env()}),
                 "second revision");
  expect_refused(pull({"--revision", "none"}), "there is no such repository");
}

TEST_F(Pull, NamesThatAreNoneAreRefusedBeforeARequest) {
  hub_.start();
  for (const char* name : {"x", "a/b/c", "/models/x", "../x", "~/x", "./x", "org/na me"}) {
    const ProcessResult r = run_lorry({"pull", name}, {.env = env()});
    EXPECT_EQ(r.status, 1) << name;
    EXPECT_THAT(r.err, HasSubstr("OWNER/NAME")) << name;
  }
  EXPECT_TRUE(hub_.server.requests().empty());
}

TEST_F(Pull, G1_offline_uses_the_cache_or_names_the_repository_and_the_variable) {
  hub_.start();
  const ProcessResult r = pull({}, {{"HF_HUB_OFFLINE", "1"}});
  expect_refused(r, "org/name");
  EXPECT_THAT(r.err, HasSubstr("HF_HUB_OFFLINE"));
  EXPECT_TRUE(hub_.server.requests().empty());
  expect_pulled(pull());
  expect_pulled(pull({}, {{"HF_HUB_OFFLINE", "1"}}));
  hub_.server.stop();
  expect_pulled(pull());
}

TEST_F(Pull, G2_a_gated_repository_names_the_page_and_the_token) {
  hub_.change([&] {
    hub_.is_gated = true;
    hub_.tokens = {"hf_good"};
  });
  hub_.start();
  const ProcessResult r = pull();
  expect_refused(r,
                 "gated: accept terms at " + hub_.server.origin() + "/org/name and set HF_TOKEN");
  const ProcessResult wrong = pull({}, {{"HF_TOKEN", "hf_wrong"}});
  expect_refused(wrong, "gated");
  EXPECT_THAT(wrong.err, Not(HasSubstr("hf_wrong")));
  expect_pulled(pull({}, {{"HF_TOKEN", "hf_good"}}));
}

TEST_F(Pull, G3_what_breaks_on_the_way_is_tried_again_from_where_it_was) {
  spoil_weights([](int n, ServerReply& reply) {
    if (n == 0) {
      reply = {.status = 503, .headers = {{"Retry-After", "0"}}};
    } else if (n == 1) {
      reply.send_bytes = 80'000;
      reply.ending = ServerReply::Ending::reset;
    }
  });
  hub_.start();
  expect_pulled(pull());
  EXPECT_EQ(hub_.server.count("GET", "adapter_model"), 3U);
  EXPECT_EQ(range_of_last_request(), "bytes=80000-");
}

TEST_F(Pull, G4_content_that_is_not_what_was_promised_is_refused) {
  spoil_weights([](int, ServerReply& reply) { reply.body[7] ^= 1; });
  hub_.start();
  expect_refused(pull(), "expected the SHA-256");
  EXPECT_EQ(hub_.server.count("GET", "adapter_model"), 2U);
  EXPECT_TRUE(files_with_end(path("cache"), ".safetensors").empty());
  EXPECT_TRUE(files_with_end(path("cache"), ".incomplete").empty());
}

TEST_F(Pull, G5_a_killed_download_is_gone_on_with) {
  hang_once();
  hub_.start();
  {
    LorryProcess first({"pull", "org/name"}, {.env = env()});
    wait_for_a_part();
    first.signal(SIGKILL);
    EXPECT_EQ(first.wait().status, -SIGKILL);
  }
  const ProcessResult second = pull();
  expect_pulled(second);
  EXPECT_THAT(second.err, HasSubstr("(150.0 kB still to come)"));
  EXPECT_EQ(range_of_last_request(), "bytes=50000-");
}

TEST_F(Pull, G5_two_at_once_fetch_each_file_once) {
  spoil_weights([](int, ServerReply& reply) { reply.delay = std::chrono::milliseconds(300); });
  hub_.start();
  LorryProcess other({"pull", "org/name"}, {.env = env()});
  expect_pulled(pull());
  expect_pulled(other.wait());
  EXPECT_EQ(hub_.server.count("GET", "adapter_model"), 1U);
}

TEST_F(Pull, G6_a_disk_or_a_cache_that_cannot_take_it_is_one_line) {
  hub_.change(
      [&] { hub_.commits.begin()->second["adapter_model.safetensors"].size = int64_t{1} << 49; });
  hub_.start();
  const ProcessResult full = pull();
  expect_refused(full, "free some space, or set another cache folder");
  EXPECT_EQ(hub_.server.count("GET", "adapter_model"), 0U);
  write_file(path("file"), "");
  expect_refused(pull({"--cache", path("file") + "/cache"}), path("file"));
}

TEST_F(Pull, G7_names_that_lead_out_of_the_folder_are_refused) {
  for (const char* name : {"../../evil.json", "/etc/evil.json"}) {
    hub_.also_listed = {name};
    if (name[0] == '.') hub_.start();
    expect_refused(pull(), "leads out of its folder");
  }
  EXPECT_EQ(hub_.server.count("GET", "adapter_model"), 0U);
}

TEST_F(Pull, ControlCKeepsWhatIsThereAndSaysSo) {
  hang_once();
  hub_.start();
  LorryProcess process({"pull", "org/name"}, {.env = env()});
  wait_for_a_part();
  process.signal(SIGINT);
  const ProcessResult r = process.wait();
  EXPECT_EQ(r.status, 130);
  EXPECT_EQ(r.out, "");
  EXPECT_THAT(r.err, HasSubstr("lorry: interrupted; what is here is kept"));
  expect_pulled(pull());
  EXPECT_EQ(range_of_last_request(), "bytes=50000-");
}

TEST_F(Pull, DrawsABarOnATerminalAndOnlyThere) {
  spoil_weights([](int n, ServerReply& reply) {
    if (n == 0) reply.piece_delay = std::chrono::milliseconds(4);
  });
  hub_.start();
  const auto on_terminal = [&](const std::vector<std::string>& flags, const std::string& cache) {
    std::vector<std::string> all = {"pull", "org/name", "--cache", path(cache)};
    all.insert(all.end(), flags.begin(), flags.end());
    return run_lorry_on_terminal(all, {.env = env({{"TERM", "xterm"}, {"NO_COLOR", "1"}})});
  };
  const ProcessResult bar = on_terminal({}, "a");
  EXPECT_EQ(bar.status, 0) << bar.err;
  EXPECT_THAT(bar.err, HasSubstr("#"));
  EXPECT_THAT(bar.err, HasSubstr("adapter_model.safetensors: "));
  EXPECT_THAT(bar.err, HasSubstr("of 200.0 kB ("));
  EXPECT_THAT(bar.err, HasSubstr("\r\x1b[Korg/name: "));  // wiped before what comes next
  EXPECT_EQ(bar.out, path("a/models--org--name/snapshots/") + std::string(40, 'a') + "\n");
  EXPECT_THAT(on_terminal({"--no-progress"}, "b").err, Not(HasSubstr("\x1b")));
  EXPECT_EQ(on_terminal({"--quiet"}, "c").err, "");
  EXPECT_THAT(pull().err, Not(HasSubstr("\x1b")));
}

// The golden model as a repository.
class RemoteModel : public Pull {
 protected:
  RemoteModel() {
    FakeHub::Files files;
    for (const auto& entry : fs::directory_iterator(golden("mixtral-base/model"))) {
      files[entry.path().filename()] = {.content = read_file(entry.path()), .is_lfs = true};
    }
    files["README.md"] = {.content = "words"};
    hub_.commits.begin()->second = files;
  }
};

TEST_F(RemoteModel, IsServedGeneratedFromAndInspectedByItsName) {
  hub_.start();
  const std::vector<std::string> rest = {"--prompt", "Hello", "--max-new-tokens", "4"};
  const auto generate = [&](const std::string& model) {
    std::vector<std::string> all = {"generate", model, "--huggingface-hub-cache", path("cache")};
    all.insert(all.end(), rest.begin(), rest.end());
    return run_lorry(all, {.env = env()});
  };
  const ProcessResult by_name = generate("org/name");
  EXPECT_EQ(by_name.status, 0) << by_name.err;
  EXPECT_THAT(by_name.err, StartsWith("org/name: model of "));
  EXPECT_EQ(by_name.out, generate(golden("mixtral-base/model")).out);
  EXPECT_EQ(generate("org/name").err, "");
  const ProcessResult pulled = pull({"-q"});
  EXPECT_EQ(run_lorry({"inspect", "org/name"}, {.env = env()}).status, 0);
  LorryProcess server({"serve", "org/name", "--port", "0"},
                      {.env = env({{"HF_HUB_OFFLINE", "1"}})});
  EXPECT_TRUE(server.wait_for("serving org/name with 0 adapters")) << server.err();
  EXPECT_EQ(hub_.server.count("GET", "README.md"), 0U);
}

TEST_F(RemoteModel, ThatIsNeitherHereNorThereIsSaidSo) {
  hub_.start();
  const auto fails = [&](const std::string& model, const std::string& text) {
    const ProcessResult r = run_lorry({"serve", model, "--port", "0"}, {.env = env()});
    expect_refused(r, text);
  };
  fails("org/other", "\"org/other\" is no folder here; as a name elsewhere: hub repository");
  fails("no-such-folder", "is no folder; a model is a folder with config.json");
  hub_.change([&] {
    hub_.commits.begin()->second = {{"adapter_config.json", {.content = "{}"}},
                                    {"adapter_model.safetensors", {.content = noise(10)}}};
  });
  fails("org/name", "this is an adapter");
}

}  // namespace
}  // namespace lorry
