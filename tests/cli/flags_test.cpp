// Every flag that LoRAX's and vLLM's scripts pass is known, as a flag, a variable and a key.
#include <algorithm>
#include <cctype>
#include <cstdlib>

#include <CLI/CLI.hpp>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "cli/compat_flags.h"
#include "cli/process.h"
#include "cli/serve_flags.h"
#include "cli/settings.h"

namespace lorry {
namespace {

using testing::HasSubstr;

struct Known {
  const char* name;
  const char* value;
};

constexpr auto kKnown = std::to_array<Known>({
    // LoRAX
    {"model-id", "demo"},
    {"revision", "main"},
    {"adapter-id", "a"},
    {"source", "hub"},
    {"adapter-source", "hub"},
    {"default-adapter-source", "hub"},
    {"preloaded-adapter-ids", "a"},
    {"merge-adapter-weights", "true"},
    {"validation-workers", "2"},
    {"sharded", "false"},
    {"num-shard", "1"},
    {"quantize", "int8"},
    {"dtype", "bfloat16"},
    {"max-concurrent-requests", "1k"},
    {"max-best-of", "2"},
    {"max-stop-sequences", "4"},
    {"max-input-length", "4k"},
    {"watermark-gamma", "0.25"},
    {"watermark-delta", "4"},
    {"max-total-tokens", "8k"},
    {"waiting-served-ratio", "1.2"},
    {"max-batch-prefill-tokens", "4k"},
    {"max-batch-total-tokens", "64k"},
    {"max-waiting-tokens", "20"},
    {"eager-prefill", "true"},
    {"chunked-prefill", "true"},
    {"prefix-caching", "true"},
    {"max-active-adapters", "1024"},
    {"adapter-cycle-time-s", "2"},
    {"adapter-memory-fraction", "0.1"},
    {"hostname", "0.0.0.0"},
    {"port", "3000"},
    {"huggingface-hub-cache", "/data"},
    {"weights-cache-override", "/data"},
    {"cuda-memory-fraction", "0.9"},
    {"json-output", "true"},
    {"otlp-endpoint", "http://localhost:4318"},
    {"cors-allow-origin", "https://a.example"},
    {"speculative-tokens", "4"},
    {"tokenizer-config-path", "/t.json"},
    {"download-only", "true"},
    {"env", "true"},
    {"compile", "true"},
    {"eager", "true"},
    {"backend", "fa2"},
    // vLLM
    {"host", "0.0.0.0"},
    {"uds", "/run/l.sock"},
    {"api-key", "k"},
    {"served-model-name", "m"},
    {"max-model-len", "8k"},
    {"max-num-seqs", "64"},
    {"max-num-batched-tokens", "512"},
    {"enable-lora", "true"},
    {"max-loras", "8"},
    {"max-lora-rank", "64"},
    {"lora-modules", "a=/a"},
    {"shutdown-timeout", "30"},
    {"tensor-parallel-size", "1"},
    {"disable-log-requests", "true"},
    {"ssl-certfile", "/c.pem"},
    {"ssl-keyfile", "/k.pem"},
    // ours
    {"no-web", "true"},
    {"max-queue-seconds", "30"},
});

std::string variable(std::string name) {
  for (char& c : name) c = c == '-' ? '_' : static_cast<char>(std::toupper(c));
  return name;
}

class Flags : public testing::TestWithParam<Known> {
 protected:
  // Whether the flag was given, after the settings were applied.
  static bool given(const std::string& command_line, const std::string& file) {
    CLI::App app("", "serve");
    ServeFlags flags;
    add_serve_flags(app, flags);
    app.parse(command_line, false);
    apply_settings(app, file);
    return app.get_option("--" + std::string(GetParam().name))->count() > 0;
  }
};

TEST_P(Flags, is_a_flag_a_variable_and_a_key) {
  const std::string name = GetParam().name;
  const std::string value = GetParam().value;
  EXPECT_FALSE(given("", ""));
  CLI::App app("", "serve");
  ServeFlags flags;
  add_serve_flags(app, flags);
  const bool is_flag = app.get_option("--" + name)->get_expected_max() == 0;
  EXPECT_TRUE(given(is_flag ? "--" + name : "--" + name + " " + value, ""));
  const TestFolder folder;
  EXPECT_TRUE(given("", folder.write("c.yaml", name + ": " + value + "\n")));
  setenv(variable(name).c_str(), value.c_str(), 1);
  EXPECT_TRUE(given("", ""));
  unsetenv(variable(name).c_str());
}

INSTANTIATE_TEST_SUITE_P(All, Flags, testing::ValuesIn(kKnown), [](const auto& of) {
  std::string name = of.param.name;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

TEST(ServeFlags, TheWebPageCanBeSwitchedOff) {
  ServeFlags flags;
  EXPECT_TRUE(server_options(flags, {}).web);
  flags.access.no_web = true;
  EXPECT_FALSE(server_options(flags, {}).web);
}

TEST(ServeFlags, AWatermarkIsDescribedByTwo) {
  const auto watermark = [](const std::string& command_line) {
    CLI::App app("", "serve");
    ServeFlags flags;
    add_serve_flags(app, flags);
    app.parse(command_line, false);
    return server_options(flags, {}).watermark;
  };
  EXPECT_EQ(watermark("").gamma, 0.5);
  EXPECT_EQ(watermark("").delta, 2.0F);
  const Watermark given = watermark("--watermark-gamma 0.25 --watermark-delta 3.5");
  EXPECT_EQ(given.gamma, 0.25);
  EXPECT_EQ(given.delta, 3.5F);
  for (const char* wrong :
       {"--watermark-gamma 0", "--watermark-gamma 1", "--watermark-gamma nan",
        "--watermark-delta 0", "--watermark-delta 101", "--watermark-delta x"}) {
    EXPECT_THROW(watermark(wrong), CLI::Error) << wrong;
  }
}

TEST(ServeFlags, AModelsFolderSuggestsPrompts) {
  const TestFolder folder;
  ModelPlace place;
  place.folder = folder.path(".");
  EXPECT_TRUE(server_options({}, place).example_prompts.empty());
  folder.write("example_prompts.json", R"(["Who are you?", "a\"b"])");
  EXPECT_EQ(server_options({}, place).example_prompts,
            (std::vector<std::string>{"Who are you?", "a\"b"}));
  for (const std::string wrong : {"{}", "[1]", R"([""])", "[", R"("a")"}) {
    folder.write("example_prompts.json", wrong);
    try {
      server_options({}, place);
      ADD_FAILURE() << wrong;
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), Code::bad_file);
      EXPECT_THAT(e.what(), HasSubstr("example_prompts.json"));
    }
  }
}

TEST(CompatFlags, WithoutEffectAreNamedInTheLog) {
  const ProcessResult r =
      run_lorry({"serve", golden("mixtral-base/model"), "--enable-lora", "--sharded", "false",
                 "--eager-prefill", "true", "--port", "0", "--host", "no.such.host.invalid"});
  for (const char* flag : {"--enable-lora has no effect", "--sharded has no effect",
                           "--eager-prefill has no effect"}) {
    EXPECT_THAT(r.err, HasSubstr(flag));
  }
}

TEST(CompatFlags, ThatCannotBeHadAreRefused) {
  const auto refused = [](std::vector<std::string> flags, const char* text) {
    flags.insert(flags.begin(), {"serve", golden("mixtral-base/model"), "--log-level", "off"});
    const ProcessResult r = run_lorry(flags);
    EXPECT_EQ(r.status, 1) << text;
    EXPECT_EQ(std::count(r.err.begin(), r.err.end(), '\n'), 1) << r.err;
    EXPECT_THAT(r.err, HasSubstr(text));
  };
  refused({"--sharded", "true"}, "--sharded");
  refused({"--tokenizer-config-path", "/x"}, "--tokenizer-config-path");
  refused({"--download-only"}, "--download-only");
}

}  // namespace
}  // namespace lorry
