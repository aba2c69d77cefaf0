// Command line > environment > file > default, with the mistakes of each named.
#include "cli/settings.h"

#include <CLI/CLI.hpp>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "cli/process.h"
#include "cli/serve_flags.h"
#include "cli/values.h"

namespace lorry {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// Sets variables for as long as it lives.
class Variables {
 public:
  using Map = std::map<std::string, std::string>;
  explicit Variables(Map variables) : variables_(std::move(variables)) {
    for (const auto& [name, value] : variables_) setenv(name.c_str(), value.c_str(), 1);
  }
  ~Variables() {
    for (const auto& [name, value] : variables_) unsetenv(name.c_str());
  }
  Variables(const Variables&) = delete;
  Variables& operator=(const Variables&) = delete;

 private:
  Map variables_;
};

ServeFlags parse(const std::string& command_line, const std::string& file = "") {
  CLI::App app("", "serve");
  ServeFlags flags;
  add_serve_flags(app, flags);
  app.parse(command_line, false);
  apply_settings(app, file);
  return flags;
}

template <class F>
std::string message_of(F&& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

TEST(Settings, TheCommandLineBeatsTheEnvironmentBeatsTheFile) {
  const TestFolder folder;
  const std::string file = folder.write("config.yaml",
                                        "port: 1\n"
                                        "max-num-seqs: 2\n"
                                        "max_batch_prefill_tokens: 3k\n"
                                        "prefix-caching: false\n"
                                        "json-output: true\n"
                                        "lora-modules: [a=/a, b=/b]\n");
  EXPECT_EQ(parse("").port, 3000);
  const ServeFlags from_file = parse("", file);
  EXPECT_EQ(from_file.port, 1);
  EXPECT_EQ(from_file.max_sequences, 2);
  EXPECT_EQ(from_file.max_batch_tokens, 3000);
  EXPECT_FALSE(from_file.prefix_caching);
  EXPECT_TRUE(from_file.json_output);
  EXPECT_THAT(from_file.adapters.lora_modules, ElementsAre("a=/a", "b=/b"));

  const Variables variables(Variables::Map{{"PORT", "10"},
                                           {"MAX_NUM_SEQS", "20"},
                                           {"MAX_NUM_BATCHED_TOKENS", "30"},
                                           {"PREFIX_CACHING", "true"},
                                           {"LORA_MODULES", "c=/c d=/d"},
                                           {"LOG_LEVEL", ""}});
  const ServeFlags from_both = parse("--port 100", file);
  EXPECT_EQ(from_both.port, 100);
  EXPECT_EQ(from_both.max_sequences, 20);
  EXPECT_EQ(from_both.max_batch_tokens, 30);
  EXPECT_TRUE(from_both.prefix_caching);
  EXPECT_TRUE(from_both.json_output);
  EXPECT_THAT(from_both.adapters.lora_modules, ElementsAre("c=/c", "d=/d"));
  EXPECT_EQ(from_both.log_level, "info");
}

TEST(Settings, HostnameCountsOnlyWhenItIsAnAddress) {
  {
    const Variables variables(Variables::Map{{"HOSTNAME", "build-machine-7"}});
    EXPECT_EQ(parse("").host, "127.0.0.1");
  }
  for (const char* address : {"0.0.0.0", "::", "localhost"}) {
    const Variables variables(Variables::Map{{"HOSTNAME", address}});
    EXPECT_EQ(parse("").host, address);
  }
}

TEST(Settings, MapsAndOtherNamesOfAFlagWork) {
  const TestFolder folder;
  const ServeFlags flags = parse("", folder.write("c.yaml",
                                                  "hostname: 10.0.0.1\n"
                                                  "model-id: /models/x\n"
                                                  "adapter-memory: 1.5G\n"
                                                  "adapter-host-memory: 4G\n"
                                                  "adapter-id: sql\n"
                                                  "preloaded-adapter-ids: [sql, org/b]\n"
                                                  "adapter-cycle-time-s: 0.5\n"
                                                  "lora-modules:\n  sql: /adapters/sql\n"));
  EXPECT_EQ(flags.host, "10.0.0.1");
  EXPECT_EQ(flags.model.model, "/models/x");
  EXPECT_EQ(flags.model.adapter_memory, 1'500'000'000);
  EXPECT_EQ(flags.model.adapter_host_memory, 4'000'000'000);
  EXPECT_EQ(flags.adapters.adapter_id, "sql");
  EXPECT_THAT(flags.adapters.preloaded, ElementsAre("sql", "org/b"));
  EXPECT_EQ(flags.adapters.cycle_time_s, 0.5);
  EXPECT_THAT(flags.adapters.lora_modules, ElementsAre("sql=/adapters/sql"));
}

TEST(Settings, MistakesNameTheFileTheLineAndTheKey) {
  const TestFolder folder;
  const auto says = [&](const std::string& yaml, const std::string& text) {
    const std::string file = folder.write("config.yaml", yaml);
    EXPECT_THAT(message_of([&] { parse("", file); }), HasSubstr(text)) << yaml;
  };
  says("port: 1\ncolour: red\n", "config.yaml:2: \"colour\"");
  says("help: true\n", "\"help\"");
  says("config: x.yaml\n", "\"config\"");
  says("port: many\n", "config.yaml:1: \"port\"");
  says("port: [1, 2]\n", "expected one value");
  says("port: 1\nport: 2\n", "twice");
  says("port:\n", "no value");
  says("host: 1.1.1.1\nhostname: 2.2.2.2\n", "another name");
  says("- port\n", "flag: value");
  says("port: [1\n", "config.yaml:");
  EXPECT_THAT(message_of([&] { parse("", folder.path("absent.yaml")); }), HasSubstr("absent.yaml"));
  const Variables variables(Variables::Map{{"MAX_NUM_SEQS", "0"}});
  EXPECT_THAT(message_of([&] { parse(""); }), HasSubstr("environment variable MAX_NUM_SEQS"));
}

TEST(Values, CountsHaveUnits) {
  EXPECT_EQ(parse_count("4096"), 4096);
  EXPECT_EQ(parse_count("4k"), 4000);
  EXPECT_EQ(parse_count("1.5G"), 1'500'000'000);
  EXPECT_EQ(parse_count("8Gi"), int64_t{8} << 30);
  EXPECT_EQ(parse_count("-1"), -1);
  for (const char* wrong : {"", "k", "1.5", "1e9", "4 k", "4q", "99999999999T", "nan", "0x10"}) {
    EXPECT_THROW(parse_count(wrong), Error) << wrong;
  }
}

TEST(Values, AdaptersAreNamesWithFolders) {
  EXPECT_EQ(parse_named_path("sql=/a=b").path, "/a=b");
  EXPECT_EQ(parse_name_or_path("sql").path, "");
  for (const char* wrong : {"sql", "=x", "sql=", ""}) EXPECT_THROW(parse_named_path(wrong), Error);
}

}  // namespace
}  // namespace lorry
