// The completions of each shell, run in that shell where there is one.
#include "cli/completion.h"

#include <cstdio>
#include <cstdlib>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "cli/process.h"

namespace lorry {
namespace {

using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::IsSupersetOf;
using testing::Not;
using testing::UnorderedElementsAre;

bool has_program(const std::string& name) {
  return std::system(("command -v " + name + " >/dev/null 2>&1").c_str()) == 0;
}

std::vector<std::string> lines_of_command(const std::string& command) {
  std::vector<std::string> lines;
  std::FILE* pipe = popen(command.c_str(), "r");
  EXPECT_NE(pipe, nullptr);
  char line[4096];
  while (std::fgets(line, sizeof line, pipe) != nullptr) {
    lines.emplace_back(line);
    if (lines.back().ends_with('\n')) lines.back().pop_back();
  }
  EXPECT_EQ(pclose(pipe), 0) << command;
  return lines;
}

class Completion : public testing::Test {
 protected:
  Completion() {
    folder_.write("files/models/config.json", "{}");
    folder_.write("files/my file.yaml", "");
    folder_.write("files/other.yaml", "");
  }
  std::string script(const std::string& shell) const {
    const ProcessResult r = run_lorry({"completion", shell});
    EXPECT_EQ(r.status, 0) << r.err;
    EXPECT_EQ(r.err, "");
    return folder_.write("completion." + shell, r.out);
  }

  TestFolder folder_;
};

class Bash : public Completion {
 protected:
  Bash() : script_(script("bash")) {}
  // What bash offers for the last of these words, split as its readline splits them.
  std::vector<std::string> offers(const std::vector<std::string>& words) const {
    std::string array;
    for (const std::string& word : words) array += "'" + word + "' ";
    const std::string program = folder_.write(
        "run.sh", "set -u; source '" + script_ + "'; cd '" + folder_.path("files") +
                      "'; COMP_WORDS=(" + array + "); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); " +
                      "_lorry; printf '%s\\n' \"${COMPREPLY[@]}\"");
    auto lines = lines_of_command("bash '" + program + "'");
    if (lines == std::vector<std::string>{""}) lines.clear();
    return lines;
  }

  std::string script_;
};

TEST_F(Bash, CompletesCommandsAndFlags) {
  EXPECT_THAT(offers({"lorry", ""}),
              IsSupersetOf({"serve", "pull", "completion", "env", "--help"}));
  EXPECT_THAT(offers({"lorry", "ser"}), ElementsAre("serve"));
  EXPECT_THAT(offers({"lorry", "serve", "--max-num"}),
              UnorderedElementsAre("--max-num-seqs", "--max-num-batched-tokens"));
  EXPECT_THAT(offers({"lorry", "generate", "--temp"}), ElementsAre("--temperature"));
  EXPECT_THAT(offers({"lorry", "env", "--"}),
              UnorderedElementsAre("--json", "--help", "--help-all"));
  EXPECT_THAT(offers({"lorry", "serve", "--"}), Not(Contains("--join-ranks")));
  EXPECT_THAT(offers({"lorry", "fly", "--"}), IsEmpty());
}

TEST_F(Bash, CompletesTheValuesOfFlags) {
  EXPECT_THAT(offers({"lorry", "serve", "--dtype", ""}),
              UnorderedElementsAre("bfloat16", "float16", "float32"));
  EXPECT_THAT(offers({"lorry", "serve", "--dtype", "=", "f"}),
              UnorderedElementsAre("float16", "float32"));
  EXPECT_THAT(offers({"lorry", "serve", "--dtype", "="}),
              UnorderedElementsAre("bfloat16", "float16", "float32"));
  EXPECT_THAT(offers({"lorry", "quantize", "x", "--to", "int"}),
              UnorderedElementsAre("int8", "int4"));
  EXPECT_THAT(offers({"lorry", "completion", "f"}), ElementsAre("fish"));
  EXPECT_THAT(offers({"lorry", "serve", "--port", ""}), IsEmpty());
}

TEST_F(Bash, CompletesFoldersAndFiles) {
  EXPECT_THAT(offers({"lorry", "serve", "mo"}), ElementsAre("models"));
  EXPECT_THAT(offers({"lorry", "serve", "dem"}), UnorderedElementsAre("demo", "demo:dbrx"));
  EXPECT_THAT(offers({"lorry", "serve", "demo", ":", "d"}), ElementsAre("dbrx"));
  EXPECT_THAT(offers({"lorry", "serve", "--adapter-root", ""}), ElementsAre("models"));
  EXPECT_THAT(offers({"lorry", "serve", "--config", ""}),
              UnorderedElementsAre("models", "my file.yaml", "other.yaml"));
  EXPECT_THAT(offers({"lorry", "serve", "--lora-modules", "sql", "=", "mo"}),
              ElementsAre("models"));
}

TEST_F(Completion, OfZshIsAScriptThatZshReads) {
  const std::string path = script("zsh");
  EXPECT_THAT(run_lorry({"completion", "zsh"}).out, HasSubstr("'*--dtype=[Weights"));
  if (!has_program("zsh")) GTEST_SKIP() << "no zsh here";
  EXPECT_THAT(lines_of_command("zsh -n '" + path + "' 2>&1"), IsEmpty());
  EXPECT_THAT(lines_of_command("zsh -fc 'autoload -U compinit; compinit -u -D; source " + path +
                               "; print $_comps[lorry]' 2>&1"),
              ElementsAre("_lorry"));
}

TEST_F(Completion, OfFishCompletes) {
  const std::string path = script("fish");
  EXPECT_THAT(run_lorry({"completion", "fish"}).out, HasSubstr("-l dtype"));
  if (!has_program("fish")) GTEST_SKIP() << "no fish here";
  const auto offers = [&](const std::string& line) {
    std::vector<std::string> words = lines_of_command(
        "cd '" + folder_.path("files") + "' && HOME='" + folder_.path("home") +
        "' fish --no-config -c 'source " + path + "; complete -C \"" + line + "\"' 2>&1");
    for (std::string& word : words) word = word.substr(0, word.find('\t'));
    return words;
  };
  EXPECT_THAT(offers("lorry ser"), ElementsAre("serve"));
  EXPECT_THAT(offers("lorry serve --dtype "),
              UnorderedElementsAre("bfloat16", "float16", "float32"));
  EXPECT_THAT(offers("lorry serve --max-num-s"), ElementsAre("--max-num-seqs"));
  EXPECT_THAT(offers("lorry serve --adapter-root mo"), ElementsAre("models/"));
  EXPECT_THAT(offers("lorry serve --config oth"), ElementsAre("other.yaml"));
}

TEST_F(Completion, OfAnotherShellIsRefused) {
  const ProcessResult r = run_lorry({"completion", "tcsh"});
  EXPECT_EQ(r.status, 1);
  EXPECT_THAT(r.err, HasSubstr("expected bash, zsh or fish"));
}

}  // namespace
}  // namespace lorry
