// Every flag of every command says what it is, where it belongs, and how else it is spelled.
#include "cli/help.h"

#include <algorithm>
#include <set>

#include <CLI/CLI.hpp>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "cli/commands.h"
#include "cli/process.h"
#include "cli/settings.h"

namespace lorry {
namespace {

using testing::HasSubstr;
using testing::Not;

class CommandLine : public testing::Test {
 protected:
  CommandLine() { add_commands(app_); }
  std::vector<const CLI::App*> commands() const {
    const CLI::App& app = app_;
    return app.get_subcommands({});
  }

  CLI::App app_{"", "lorry"};
};

TEST_F(CommandLine, EveryFlagHasADescriptionAGroupAndADefault) {
  size_t n = 0;
  for (const CLI::App* command : commands()) {
    for (const CLI::Option* o : shown_options(*command)) {
      const std::string name = command->get_name() + " " + o->get_name(true, true);
      ++n;
      EXPECT_GE(o->get_description().size(), 12U) << name;
      EXPECT_NE(o->get_group(), "Options") << name;
      if (o->get_expected_max() == 0) continue;
      EXPECT_NE(value_of(*o), "TEXT:") << name;
      EXPECT_NE(value_of(*o), "") << name;
      if (o->get_required()) continue;
      EXPECT_THAT(o->get_description(), HasSubstr("default")) << name;
    }
  }
  EXPECT_GT(n, 150U);
}

TEST_F(CommandLine, EveryFlagOfServeIsAVariableAndHelpAllSaysWhich) {
  const CLI::App* serve = app_.get_subcommand("serve");
  ASSERT_TRUE(has_settings(*serve));
  const std::string help = serve->help("lorry", CLI::AppFormatMode::All);
  for (const CLI::Option* o : shown_options(*serve)) {
    for (const std::string& name : o->get_lnames()) EXPECT_THAT(help, HasSubstr("--" + name));
    const std::string variable = variable_of(*o);
    if (o->get_lnames().front() == "config") continue;
    EXPECT_NE(variable, "") << o->get_name();
    // Wrapping breaks lines at blanks only.
    EXPECT_THAT(help, HasSubstr("[" + variable + "]"));
  }
  EXPECT_THAT(help, HasSubstr("[MAX_NUM_SEQS]"));
}

TEST_F(CommandLine, HelpIsShortAndHelpAllIsWhole) {
  const CLI::App* serve = app_.get_subcommand("serve");
  const std::string few = serve->help("lorry", CLI::AppFormatMode::Normal);
  EXPECT_THAT(few, HasSubstr("--port N"));
  EXPECT_THAT(few, HasSubstr("--dtype bfloat16|float16|float32"));
  EXPECT_THAT(few, Not(HasSubstr("--watchdog-timeout")));
  EXPECT_THAT(few, HasSubstr("lorry serve --help-all lists all"));
  EXPECT_LT(std::count(few.begin(), few.end(), '\n'), 90);
  EXPECT_GT(few.find("Examples"), few.find("--help-all"));
  const ProcessResult all = run_lorry({"serve", "--help-all"});
  EXPECT_EQ(all.status, 0);
  EXPECT_THAT(all.out, HasSubstr("--watchdog-timeout"));
  for (const CLI::App* command : commands()) {
    for (const auto mode : {CLI::AppFormatMode::Normal, CLI::AppFormatMode::All}) {
      std::istringstream lines(command->help("lorry", mode));
      for (std::string line; std::getline(lines, line);) EXPECT_LE(line.size(), 100U) << line;
    }
  }
}

TEST_F(CommandLine, TheMostUsedFlagsExist) {
  std::set<std::string> known;
  for (const CLI::App* command : commands()) {
    for (const std::string& name : flag_names(*command)) known.insert(name);
  }
  for (const std::string_view name : common_flags()) {
    EXPECT_TRUE(known.contains(std::string(name))) << name;
  }
}

TEST(DidYouMean, NamesTheNearestOrNothing) {
  const std::vector<std::string> names = {"--port", "--host", "--max-num-seqs",
                                          "--max-total-tokens"};
  EXPECT_EQ(nearest("--prot", names), "--port");
  EXPECT_EQ(nearest("--max-num-seq", names), "--max-num-seqs");
  EXPECT_EQ(nearest("--max-total", names), "--max-total-tokens");
  EXPECT_EQ(nearest("--colour", names), "");
  EXPECT_EQ(did_you_mean("--hosst", names), "; did you mean --host?");
  EXPECT_EQ(did_you_mean("--x", names), "");
}

TEST(DidYouMean, MistakesOfTheCommandLineAreAnsweredSo) {
  const auto says = [](const std::vector<std::string>& line, const std::string& text) {
    const ProcessResult r = run_lorry(line);
    EXPECT_EQ(r.status, 2);
    EXPECT_THAT(r.err, HasSubstr(text));
  };
  says({"serve", "--prot", "80"}, "there is no flag \"--prot\"; did you mean --port?");
  says({"serve", "--max-num-seq=4"}, "did you mean --max-num-seqs?");
  says({"generate", "--prompt", "x", "--temprature", "1"}, "did you mean --temperature?");
  says({"sevre"}, "there is no command \"sevre\"; did you mean serve?");
  says({"serve", "--qqqq"}, "there is no flag \"--qqqq\"\n");
  const TestFolder folder;
  const std::string config = folder.write("c.yaml", "max-num-seq: 4\n");
  EXPECT_THAT(run_lorry({"serve", "--config", config}).err,
              HasSubstr("did you mean --max-num-seqs?"));
}

}  // namespace
}  // namespace lorry
