// `lorry quantize`, and the folders it makes under the other commands.
#include <algorithm>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/wait.h>

#include "base/files.h"
#include "base/json.h"
#include "cli/process.h"

namespace lorry {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::StartsWith;

const std::string kModel = "mixtral-base/model";

ProcessResult quantize(const std::string& out, const std::vector<std::string>& more = {}) {
  std::vector<std::string> all{"quantize", golden(kModel), "--to", "int8", "--out", out};
  all.insert(all.end(), more.begin(), more.end());
  return run_lorry(all);
}

void expect_refused(const ProcessResult& r, const std::string& text) {
  EXPECT_EQ(r.status, 1);
  EXPECT_THAT(r.err, StartsWith("lorry: "));
  EXPECT_THAT(r.err, HasSubstr(text));
  EXPECT_EQ(std::count(r.err.begin(), r.err.end(), '\n'), 1) << r.err;
}

// Names in a folder.
std::vector<std::string> names(const fs::path& folder) {
  std::vector<std::string> all;
  for (const auto& entry : fs::directory_iterator(folder)) all.push_back(entry.path().filename());
  std::sort(all.begin(), all.end());
  return all;
}

std::string logits(const TestFolder& folder, const std::vector<std::string>& model) {
  std::vector<std::string> all{"logits",
                               "--prompts",
                               folder.path("prompts.json"),
                               "--out",
                               folder.path("out"),
                               "--adapter",
                               "a=" + golden("mixtral-base/adapters/dora-qv-r8")};
  all.insert(all.end(), model.begin(), model.end());
  const ProcessResult r = run_lorry(all);
  EXPECT_EQ(r.status, 0) << r.err;
  return read_file(folder.path("out"));
}

TEST(Quantize, TheNewFolderIsAModelForEveryCommand) {
  const TestFolder folder;
  folder.write("prompts.json", R"([{"tokens":[1,5,9,12]},{"tokens":[3,7],"adapter":"a"}])");
  const std::string out = folder.path("packed");
  const ProcessResult r = quantize(out);
  ASSERT_EQ(r.status, 0) << r.err;
  EXPECT_EQ(r.err, "");
  EXPECT_THAT(r.out, HasSubstr("as int8"));
  std::vector<std::string> expected = names(golden(kModel));
  std::replace(expected.begin(), expected.end(), std::string("model.safetensors"),
               std::string("model.lorry"));
  std::sort(expected.begin(), expected.end());
  EXPECT_EQ(names(out), expected);
  EXPECT_EQ(names(fs::path(out).parent_path()),
            (std::vector<std::string>{"packed", "prompts.json"}));

  const std::string want = logits(folder, {golden(kModel), "--quantize", "int8"});
  EXPECT_TRUE(logits(folder, {out}) == want);
  EXPECT_TRUE(logits(folder, {out, "--map-weights", "--quantize", "int8"}) == want);
  EXPECT_TRUE(logits(folder, {out, "--num-shard", "2"}) ==
              logits(folder, {golden(kModel), "--quantize", "int8", "--num-shard", "2"}));
  EXPECT_EQ(run_lorry({"generate", out, "--prompt", "Hello", "--max-new-tokens", "4"}).out,
            run_lorry({"generate", golden(kModel), "--quantize", "int8", "--prompt", "Hello",
                       "--max-new-tokens", "4"})
                .out);
  const ProcessResult bench =
      run_lorry({"bench", "--model", out, "--kind", "decode", "--batch", "1", "--reps", "1"});
  EXPECT_EQ(bench.status, 0) << bench.err;
  LorryProcess serve({"serve", out, "--port", "0"});
  EXPECT_TRUE(serve.wait_for("serving")) << serve.err();
  expect_refused(run_lorry({"generate", out, "--quantize", "int4", "--prompt", "x"}),
                 "is packed as int8, its head as plain: leave --quantize out");
}

TEST(Quantize, InspectTellsWhatIsPackedAndFindsDamage) {
  const TestFolder folder;
  const std::string out = folder.path("packed");
  ASSERT_EQ(quantize(out).status, 0);
  EXPECT_THAT(run_lorry({"inspect", out}).out, HasSubstr("packed    int8, head plain"));
  const ProcessResult r = run_lorry({"inspect", out, "--check", "--json"});
  ASSERT_EQ(r.status, 0) << r.err;
  const json::value doc = parse_json(r.out.substr(0, r.out.size() - 1), "inspect");
  const std::string text = run_lorry({"inspect", golden(kModel), "--json"}).out;
  const json::value plain = parse_json(text.substr(0, text.size() - 1), "inspect");
  EXPECT_EQ(doc.at("digest"), plain.at("digest"));
  EXPECT_THAT(
      run_lorry({"inspect", golden("mixtral-base/adapters/dora-qv-r8"), "--model", out}).out,
      HasSubstr("rank 8"));
  std::string bytes = read_file(out + "/model.lorry");
  bytes.back() = static_cast<char>(bytes.back() ^ 1);
  write_file(out + "/model.lorry", bytes);
  EXPECT_EQ(run_lorry({"inspect", out}).status, 0);
  expect_refused(run_lorry({"inspect", out, "--check"}), "is damaged");
  bytes.pop_back();
  write_file(out + "/model.lorry", bytes);
  expect_refused(run_lorry({"generate", out, "--prompt", "x"}), "it was cut off");
}

TEST(Quantize, NothingIsReplacedButAPackedModelWithForce) {
  const TestFolder folder;
  const std::string out = folder.path("packed");
  ASSERT_EQ(quantize(out).status, 0);
  expect_refused(quantize(out), "add --force");
  ASSERT_EQ(quantize(out + "/", {"--force", "--quantize-head"}).status, 0);
  EXPECT_THAT(run_lorry({"inspect", out}).out, HasSubstr("packed    int8, head int8"));
  folder.write("other/file.txt", "mine");
  expect_refused(quantize(folder.path("other"), {"--force"}), "--force replaces nothing else");
  EXPECT_EQ(read_file(folder.path("other/file.txt")), "mine");
  EXPECT_EQ(names(folder.path("")), (std::vector<std::string>{"other", "packed"}));
}

TEST(Quantize, WhatCannotBePackedIsSaid) {
  const TestFolder folder;
  const std::string out = folder.path("packed");
  expect_refused(quantize(out, {"--group", "32"}), "--group is of int4");
  expect_refused(run_lorry({"quantize", "synthetic:tiny-mixtral", "--to", "int8", "--out", out}),
                 "is no folder");
  ASSERT_EQ(quantize(out).status, 0);
  expect_refused(run_lorry({"quantize", out, "--to", "int4", "--out", folder.path("b")}),
                 "is quantised already");
  expect_refused(quantize("/nowhere/at/all"), "cannot make a folder there");
}

TEST(Quantize, AFullDiskLeavesNothing) {
  const TestFolder folder;
  // Files may have 20 kB, as if the disk were full; a signal would say so first.
  const std::string command = "trap '' XFSZ; ulimit -f 40; '" LORRY_BINARY "' quantize '" +
                              golden(kModel) + "' --to int8 --out '" + folder.path("packed") +
                              "' 2>'" + folder.path("err") + "'";
  const int status = std::system(command.c_str());
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 1);
  EXPECT_THAT(read_file(folder.path("err")), HasSubstr("cannot"));
  EXPECT_EQ(names(folder.path("")), (std::vector<std::string>{"err"}));
}

}  // namespace
}  // namespace lorry
