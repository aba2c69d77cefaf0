// One model in several processes: --num-shard. How they start, answer and end together.
#include "cli/ranks.h"

#include <chrono>
#include <cmath>
#include <fstream>
#include <thread>

#include <boost/json/serialize.hpp>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include "base/files.h"
#include "base/json.h"
#include "cli/process.h"
#include "weights/safetensors.h"

namespace lorry {
namespace {

using testing::HasSubstr;
using Clock = std::chrono::steady_clock;

std::vector<int> children_of(int pid) {
  std::ifstream in("/proc/" + std::to_string(pid) + "/task/" + std::to_string(pid) + "/children");
  std::vector<int> all;
  for (int child = 0; in >> child;) all.push_back(child);
  return all;
}

bool runs(int pid) {
  std::ifstream in("/proc/" + std::to_string(pid) + "/stat");
  std::string number, name, state;
  return in >> number >> name >> state && state != "Z";
}

// Within five seconds.
bool all_end(const std::vector<int>& pids) {
  const auto deadline = Clock::now() + std::chrono::seconds(5);
  while (std::any_of(pids.begin(), pids.end(), runs)) {
    if (Clock::now() > deadline) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return true;
}

std::vector<std::string> serve(const std::string& ranks) {
  return {"serve", golden("mixtral-base/model"), "--port", "0", "--threads", "1", "--num-shard",
          ranks};
}

TEST(RankPlaces, AreNodesOfItsOwnOrOneThatRanksShare) {
  EXPECT_FALSE(place_rank(0, 2, 1));
  EXPECT_FALSE(place_rank(1, 2, 0));
  const auto all = [](int ranks, int nodes) {
    std::string text;
    for (int r = 0; r < ranks; ++r) {
      const RankPlace p = place_rank(r, ranks, nodes).value();
      text += fmt::format("{}+{}/{} ", p.first, p.nodes, p.ranks);
    }
    return text;
  };
  EXPECT_EQ(all(2, 2), "0+1/1 1+1/1 ");
  EXPECT_EQ(all(4, 2), "0+1/2 0+1/2 1+1/2 1+1/2 ");
  EXPECT_EQ(all(3, 2), "0+1/2 0+1/2 1+1/1 ");
  EXPECT_EQ(all(2, 4), "0+2/1 2+2/1 ");
  EXPECT_EQ(all(2, 5), "0+2/1 2+3/1 ");
}

TEST(RankDevices, AreThoseInTheRanksPlaceOfTheVisibleOnes) {
  EXPECT_EQ(device_of_rank({}, 0), "0");
  EXPECT_EQ(device_of_rank({}, 7), "7");
  EXPECT_EQ(device_of_rank("4,GPU-1f,6", 0), "4");
  EXPECT_EQ(device_of_rank("4,GPU-1f,6", 1), "GPU-1f");
  EXPECT_EQ(device_of_rank("4,GPU-1f,6", 2), "6");
  EXPECT_EQ(device_of_rank("4,GPU-1f,6", 3), "");  // there is none for it
  EXPECT_EQ(device_of_rank("", 0), "");            // all are hidden
  EXPECT_EQ(device_of_rank("", 1), "");
}

TEST(Ranks, LogitsAreThoseOfTheGoldenCaseAndTheSameBytesTwice) {
  const TestFolder folder;
  const json::value g = parse_json_file(golden("mixtral-base/golden.json"));
  json::array prompts;
  std::vector<std::string> names;
  for (const json::value& run : g.at("runs").as_array()) {
    if (!run.at("adapter").is_null() && run.at("adapter") != "experts-r8") continue;
    prompts.push_back(
        json::object{{"tokens", g.at("prompts").at(std::string_view(run.at("prompt").as_string()))},
                     {"adapter", run.at("adapter")}});
    names.emplace_back(run.at("logits").as_string());
  }
  folder.write("prompts.json", json::serialize(prompts));
  const auto bytes = [&](const std::string& out, std::vector<std::string> more) {
    std::vector<std::string> all = {
        "logits",    golden("mixtral-base/model"),
        "--prompts", folder.path("prompts.json"),
        "--out",     folder.path(out),
        "--dtype",   "float32",
        "--threads", "1",
        "--adapter", "experts-r8=" + golden("mixtral-base/adapters/experts-r8")};
    all.insert(all.end(), more.begin(), more.end());
    const ProcessResult r = run_lorry(all);
    EXPECT_EQ(r.status, 0) << r.err;
    return read_file(folder.path(out));
  };
  for (const std::vector<std::string>& how :
       {std::vector<std::string>{"--num-shard", "2"}, {"--num-shard", "3", "--expert-parallel"}}) {
    const std::string first = bytes("out", how);
    EXPECT_TRUE(first == bytes("again", how));
    const auto ours = SafetensorsFile::open(folder.path("out"), Access::read);
    const auto theirs =
        SafetensorsFile::open(golden("mixtral-base/golden.safetensors"), Access::read);
    ASSERT_EQ(ours.tensors().size(), names.size());
    for (size_t i = 0; i < names.size(); ++i) {
      const Tensor a = ours.tensor("logits." + std::to_string(i));
      const Tensor b = theirs.tensor(names[i]);
      ASSERT_EQ(a.shape.size(), b.shape.size());
      for (int64_t j = 0; j < a.shape.size(); ++j) {
        ASSERT_NEAR(a.row<float>(0)[j], b.row<float>(0)[j], 2e-4F) << names[i];
      }
    }
  }
}

TEST(Ranks, SigtermEndsAllInOrder) {
  LorryProcess server(serve("3"));
  ASSERT_TRUE(server.wait_for("Try: ")) << server.err();
  const std::vector<int> others = children_of(server.pid());
  ASSERT_EQ(others.size(), 2U);
  for (const int pid : others) kill(pid, SIGTERM);  // as where a whole group is told
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_TRUE(runs(others[0]));
  server.signal(SIGTERM);
  const ProcessResult end = server.wait();
  EXPECT_EQ(end.status, 0) << end.err;
  EXPECT_TRUE(all_end(others));
}

TEST(Ranks, ARankThatDiesEndsAllWithinFiveSeconds) {
  LorryProcess server(serve("3"));
  ASSERT_TRUE(server.wait_for("Try: ")) << server.err();
  const std::vector<int> others = children_of(server.pid());
  ASSERT_EQ(others.size(), 2U);
  const auto start = Clock::now();
  kill(others[1], SIGKILL);
  const ProcessResult end = server.wait();
  EXPECT_LT(Clock::now() - start, std::chrono::seconds(5));
  EXPECT_EQ(end.status, 1);
  EXPECT_THAT(end.err, HasSubstr("lorry: rank 2 (process " + std::to_string(others[1]) +
                                 ") was killed by signal 9: all ranks end\n"));
  EXPECT_TRUE(all_end(others));
}

TEST(Ranks, TheOthersDieWithRank0) {
  LorryProcess server(serve("3"));
  ASSERT_TRUE(server.wait_for("Try: ")) << server.err();
  const std::vector<int> others = children_of(server.pid());
  server.signal(SIGKILL);
  EXPECT_EQ(server.wait().status, -SIGKILL);
  EXPECT_TRUE(all_end(others));
}

TEST(Ranks, WhatCannotBeEndsWithTheConstraint) {
  const ProcessResult many = run_lorry({"serve", golden("mixtral-base/model"), "--port", "0",
                                        "--num-shard", "9", "--expert-parallel"});
  EXPECT_EQ(many.status, 1);
  EXPECT_THAT(many.err, HasSubstr("the model has 8 experts, too few for 9 ranks"));
  const ProcessResult tier = run_lorry({"serve", golden("mixtral-base/model"), "--port", "0",
                                        "--num-shard", "2", "--adapter-host-memory", "1M"});
  EXPECT_EQ(tier.status, 1);
  EXPECT_THAT(tier.err, HasSubstr("--adapter-host-memory with 2 ranks: they keep adapters in one "
                                  "place, where they are computed with: leave it out and add it to "
                                  "--adapter-memory"));
  const ProcessResult gpus = run_lorry({"serve", golden("mixtral-base/model"), "--port", "0",
                                        "--num-shard", "2", "--device", "cuda"});
  EXPECT_EQ(gpus.status, 1);
  EXPECT_THAT(gpus.err, HasSubstr("of 2 needs a GPU of its own: "));
  const ProcessResult chat = run_lorry({"generate", "--prompt", "x", "--num-shard", "2"});
  EXPECT_EQ(chat.status, 2);
  EXPECT_THAT(chat.err, HasSubstr("--num-shard"));
  EXPECT_EQ(run_lorry({"serve", golden("mixtral-base/model"), "--join-ranks", "0:1"}).status, 1);
}

}  // namespace
}  // namespace lorry
