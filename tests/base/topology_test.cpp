#include "base/topology.h"

#include <filesystem>
#include <fstream>
#include <map>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

namespace lorry {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using Numbers = std::vector<int>;

// A folder like /sys/devices/system/node.
class FakeNodes {
 public:
  explicit FakeNodes(const std::map<std::string, std::string>& files)
      : folder_(testing::TempDir() + "lorry-nodes-" + std::to_string(getpid())) {
    for (const auto& [name, text] : files) {
      const std::filesystem::path path = folder_ / name;
      std::filesystem::create_directories(path.parent_path());
      std::ofstream(path) << text;
    }
  }
  ~FakeNodes() { std::filesystem::remove_all(folder_); }
  Topology read(const Numbers& cpus, const Numbers& memory_nodes) const {
    return read_topology(folder_.string(), cpus, memory_nodes);
  }

 private:
  std::filesystem::path folder_;
};

Numbers count_to(int n) {
  Numbers all;
  for (int i = 0; i < n; ++i) all.push_back(i);
  return all;
}

const std::map<std::string, std::string> kTwo{{"online", "0-1\n"},
                                              {"has_memory", "0-1\n"},
                                              {"node0/cpulist", "0-3,8-11\n"},
                                              {"node1/cpulist", "4-7,12-15\n"}};

std::map<std::string, std::string> with(std::map<std::string, std::string> files,
                                        const std::map<std::string, std::string>& others) {
  for (const auto& [name, text] : others) files[name] = text;
  return files;
}

TEST(NumberList, IsReadAndWritten) {
  EXPECT_THAT(*parse_number_list("0-3,8-11\n"), ElementsAre(0, 1, 2, 3, 8, 9, 10, 11));
  EXPECT_THAT(*parse_number_list("7"), ElementsAre(7));
  EXPECT_THAT(*parse_number_list(""), IsEmpty());
  EXPECT_THAT(*parse_number_list("\n"), IsEmpty());
  for (const char* text : {"0-3,8-11", "7", "", "0,2,4-5"}) {
    EXPECT_EQ(format_number_list(*parse_number_list(text)), text);
  }
}

TEST(NumberList, IsNotReadFromOtherTexts) {
  for (const char* text : {"a", "0-", "-1", "3-1", "0,,1", "0,", ",0", "0 1", "0-3-5", "1,0", "1,1",
                           "0x3", "99999999999", "70000", "0-70000"}) {
    EXPECT_FALSE(parse_number_list(text)) << text;
  }
}

TEST(Topology, HasTheUsableCpusOfEachNode) {
  const Topology all = FakeNodes(kTwo).read(count_to(16), {0, 1});
  EXPECT_EQ(to_string(all), "0 (CPUs 0-3,8-11), 1 (CPUs 4-7,12-15)");
  const Topology some = FakeNodes(kTwo).read({2, 3, 4, 12, 40}, {0, 1});
  EXPECT_EQ(to_string(some), "0 (CPUs 2-3), 1 (CPUs 4,12)");
}

TEST(Topology, LeavesOutNodesWithoutUsableCpusAndThoseThatAreOffline) {
  EXPECT_EQ(to_string(FakeNodes(kTwo).read({5}, {0, 1})), "1 (CPUs 5)");
  const auto sparse = with(kTwo, {{"online", "0,5\n"},
                                  {"has_memory", "0,5\n"},
                                  {"node5/cpulist", "16-17\n"},
                                  {"node5/distance", "21 10\n"}});
  EXPECT_EQ(to_string(FakeNodes(sparse).read(count_to(20), {0, 1, 5})),
            "0 (CPUs 0-3,8-11), 5 (CPUs 16-17)");
  // Memory without CPUs, as of an accelerator.
  const auto extra =
      with(kTwo, {{"online", "0-2\n"}, {"has_memory", "0-2\n"}, {"node2/cpulist", "\n"}});
  EXPECT_EQ(FakeNodes(extra).read(count_to(16), {0, 1, 2}).size(), 2U);
}

TEST(Topology, CpusWithoutMemoryBelongToTheNearestNodeThatHasSome) {
  const auto files = with(
      kTwo, {{"online", "0-2\n"}, {"node2/cpulist", "16-17\n"}, {"node2/distance", "30 20 10\n"}});
  EXPECT_EQ(to_string(FakeNodes(files).read(count_to(18), {0, 1, 2})),
            "0 (CPUs 0-3,8-11), 1 (CPUs 4-7,12-17)");
  // A control group that allows the memory of one node.
  EXPECT_EQ(to_string(FakeNodes(kTwo).read(count_to(16), {0})), "0 (CPUs 0-15)");
}

TEST(Topology, IsEmptyWhereTheFolderDoesNotSayOrCannotBeRead) {
  const Numbers cpus = count_to(16), nodes{0, 1};
  EXPECT_THAT(FakeNodes({}).read(cpus, nodes), IsEmpty());
  for (const char* file : {"online", "has_memory", "node0/cpulist", "node1/cpulist"}) {
    EXPECT_THAT(FakeNodes(with(kTwo, {{file, "garbage\n"}})).read(cpus, nodes), IsEmpty()) << file;
    auto missing = kTwo;
    missing.erase(file);
    EXPECT_THAT(FakeNodes(missing).read(cpus, nodes), IsEmpty()) << file;
  }
  EXPECT_THAT(FakeNodes(kTwo).read({}, nodes), IsEmpty());
  EXPECT_THAT(FakeNodes(kTwo).read(cpus, {}), IsEmpty());
}

TEST(Topology, OfThisMachineHasTheCpusThatThisProcessMayUse) {
  Numbers all;
  for (const NumaNode& node : read_topology()) {
    EXPECT_FALSE(node.cpus.empty());
    all.insert(all.end(), node.cpus.begin(), node.cpus.end());
  }
  if (all.empty()) GTEST_SKIP() << "this system does not tell about NUMA nodes";
  std::sort(all.begin(), all.end());
  EXPECT_EQ(all, usable_cpus());
}

}  // namespace
}  // namespace lorry
