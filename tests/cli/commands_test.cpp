// The command line as people meet it: help, mistakes, what each command prints.
#include <algorithm>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/wait.h>

#include "base/files.h"
#include "base/json.h"
#include "cli/process.h"
#include "weights/safetensors.h"

namespace lorry {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

const std::string kModel = "mixtral-base/model";
const std::string kAdapters = "mixtral-base/adapters/";

// Fails as commands do: with this status, and one line that says why.
void expect_one_line(const ProcessResult& r, int status, const std::string& text) {
  EXPECT_EQ(r.status, status) << r.err;
  EXPECT_EQ(r.out, "");
  EXPECT_THAT(r.err, StartsWith("lorry: "));
  EXPECT_THAT(r.err, HasSubstr(text));
  // A wrong command line is followed by a line that points to --help.
  EXPECT_EQ(std::count(r.err.begin(), r.err.end(), '\n'), status) << r.err;
}

TEST(Help, EveryCommandSaysWhatItDoesWithAnExample) {
  const ProcessResult all = run_lorry({"--help"});
  EXPECT_EQ(all.status, 0);
  for (const char* name : {"serve", "generate", "chat", "pull", "inspect", "logits", "bench",
                           "quantize", "completion", "env"}) {
    EXPECT_THAT(all.out, HasSubstr(name));
    const ProcessResult r = run_lorry({name, "--help"});
    EXPECT_EQ(r.status, 0) << name;
    EXPECT_THAT(r.out, HasSubstr("Example")) << name;
    EXPECT_THAT(r.out, HasSubstr(std::string("lorry ") + name + " ")) << name;
  }
  EXPECT_THAT(run_lorry({"--version"}).out, StartsWith("lorry "));
}

// What a shell says of the command line `lorry REST`.
int status_in_shell(const std::string& rest) {
  const int status = std::system((std::string("'" LORRY_BINARY "' ") + rest).c_str());
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST(Output, WhatCannotBeWrittenIsAnErrorAndNoCrash) {
  EXPECT_EQ(status_in_shell("env >/dev/full 2>/dev/null"), 1);
  EXPECT_EQ(status_in_shell("env >/dev/null"), 0);
  EXPECT_EQ(status_in_shell("fly 2>/dev/full"), 2);
  EXPECT_EQ(status_in_shell("fly 2>&-"), 2);
  EXPECT_EQ(status_in_shell("inspect /no/such/folder 2>/dev/full"), 1);
  const std::string serve = "serve '" + golden(kModel) + "' --port 0 2>/dev/full";
  EXPECT_EQ(status_in_shell(serve + " & p=$!; sleep 1; kill $p; wait $p"), 0);
}

TEST(Help, MistakesOnTheCommandLineNameTheFlag) {
  expect_one_line(run_lorry({}), 2, "subcommand");
  expect_one_line(run_lorry({"fly"}), 2, "fly");
  expect_one_line(run_lorry({"generate", "--prompt", "x", "--colour", "red"}), 2, "--colour");
  expect_one_line(run_lorry({"generate", "--prompt", "x", "--threads", "two"}), 2, "--threads");
  expect_one_line(run_lorry({"generate", "--prompt", "x", "--numa", "two"}), 1,
                  "--numa \"two\": expected auto or off");
  expect_one_line(run_lorry({"generate", "--prompt", "x", "--top-p", "1.5"}), 2, "--top-p");
  expect_one_line(run_lorry({"generate"}), 2, "--prompt");
}

TEST(Device, CudaIsRefusedWithTheReasonWhereItCannotBeHad) {
  expect_one_line(run_lorry({"generate", "--prompt", "x", "--device", "tpu"}), 1,
                  "auto, cpu or cuda");
  const std::string text = run_lorry({"env", "--json"}).out;
  const json::object o = parse_json(text.substr(0, text.size() - 1), "env").as_object();
  if (o.at("gpu").at("usable").as_bool()) GTEST_SKIP() << o.at("cuda").as_string().c_str();
  expect_one_line(run_lorry({"generate", "--prompt", "x", "--device", "cuda"}), 1,
                  o.at("cuda").as_string().c_str());
}

TEST(Env, TellsTheMachineAsTextAndJson) {
  EXPECT_THAT(run_lorry({"env"}).out, HasSubstr("isa "));
  const ProcessResult r = run_lorry({"env", "--json"});
  ASSERT_EQ(r.status, 0);
  const json::object o = parse_json(r.out.substr(0, r.out.size() - 1), "env").as_object();
  for (const char* key : {"version", "compiler", "cpu", "isa", "libraries"}) {
    EXPECT_FALSE(o.at(key).as_string().empty()) << key;
  }
  for (const char* key : {"cores", "cpus", "threads", "numa_nodes"}) {
    EXPECT_GE(o.at(key).as_int64(), 1) << key;
  }
  for (const json::value& node : o.at("numa").as_array()) {
    EXPECT_GE(node.at("node").as_int64(), 0);
    EXPECT_FALSE(node.at("cpus").as_string().empty());
  }
  EXPECT_FALSE(o.at("cuda").as_string().empty());
  EXPECT_GT(o.at("memory_available").to_number<int64_t>(), 0);
  EXPECT_GE(o.at("memory_total").to_number<int64_t>(),
            o.at("memory_available").to_number<int64_t>());
  EXPECT_TRUE(o.at("port").at("free").is_bool());
  EXPECT_TRUE(o.at("gpu").at("usable").is_bool());
  EXPECT_TRUE(o.at("mpi").is_string());
  EXPECT_TRUE(o.at("huge_pages").at("transparent").is_string());
  const TestFolder cache;
  cache.write("hub/blob", std::string(1500, 'x'));
  const ProcessResult used = run_lorry({"env"}, {.env = {{"HF_HUB_CACHE", cache.path("hub")}}});
  EXPECT_THAT(used.out, HasSubstr(cache.path("hub") + " (1.5 kB)"));
}

TEST(Inspect, ModelShapeAndMemoryComeWithoutLoading) {
  EXPECT_THAT(run_lorry({"inspect", golden(kModel)}).out, HasSubstr("memory: weights"));
  const ProcessResult r = run_lorry({"inspect", golden(kModel), "--json"});
  ASSERT_EQ(r.status, 0) << r.err;
  const json::object o = parse_json(r.out.substr(0, r.out.size() - 1), "inspect").as_object();
  const SafetensorsFile file =
      SafetensorsFile::open(golden(kModel) + "/model.safetensors", Access::mapped);
  EXPECT_EQ(o.at("tensors").to_number<size_t>(), file.tensors().size());
  EXPECT_EQ(o.at("spec").at("model_type").as_string(), "mixtral");
  EXPECT_GT(o.at("memory").at("weights").to_number<int64_t>(), 0);
}

TEST(Inspect, AdapterIsToldByWhatItChangesInTheModel) {
  const std::string adapter = golden(kAdapters + "attn-r8");
  const ProcessResult r = run_lorry({"inspect", adapter, "--model", golden(kModel), "--json"});
  ASSERT_EQ(r.status, 0) << r.err;
  const json::object o = parse_json(r.out.substr(0, r.out.size() - 1), "inspect").as_object();
  EXPECT_EQ(o.at("max_rank").as_int64(), 8);
  EXPECT_FALSE(o.at("sites").as_array().empty());
  EXPECT_THAT(run_lorry({"inspect", adapter, "--model", golden(kModel)}).out, HasSubstr("rank 8"));
  expect_one_line(run_lorry({"inspect", adapter}), 1, "--model");
  expect_one_line(
      run_lorry({"inspect", golden("dbrx-base/adapters/attn-r8"), "--model", golden(kModel)}), 1,
      "adapter_model.safetensors");
  const std::string heads = golden("medusa/v2");
  EXPECT_THAT(run_lorry({"inspect", heads, "--model", golden(kModel)}).out,
              HasSubstr("3 Medusa heads"));
  expect_one_line(run_lorry({"inspect", heads}), 1, "--model");
}

TEST(Errors, BadModelsEndWithOneLineThatNamesTheFile) {
  const TestFolder folder;
  expect_one_line(run_lorry({"generate", folder.path("absent"), "--prompt", "x"}), 1, "absent");
  expect_one_line(run_lorry({"generate", "demo:none", "--prompt", "x"}), 1, "demo:dbrx");

  const std::string config = read_file(golden(kModel) + "/config.json");
  folder.write("short/config.json", config);
  folder.write("short/model.safetensors", "abc");
  expect_one_line(run_lorry({"generate", folder.path("short"), "--prompt", "x"}), 1,
                  "model.safetensors");
  expect_one_line(run_lorry({"inspect", folder.path("short")}), 1, "model.safetensors");

  folder.write("lfs/config.json", config);
  folder.write("lfs/model.safetensors",
               "version https://git-lfs.github.com/spec/v1\noid sha256:0\n");
  expect_one_line(run_lorry({"serve", folder.path("lfs"), "--port", "0"}), 1, "LFS");

  folder.write("gguf/config.json", config);
  folder.write("gguf/model.gguf", "GGUF");
  expect_one_line(run_lorry({"inspect", folder.path("gguf")}), 1, "gguf");

  folder.write("odd/config.json", R"({"model_type":"llama"})");
  folder.write("odd/model.safetensors", read_file(golden(kModel) + "/model.safetensors"));
  expect_one_line(run_lorry({"inspect", folder.path("odd")}), 1, "llama");
}

TEST(Generate, WritesTheAnswerOfTheAdapter) {
  const std::vector<std::string> base = {"generate",    golden(kModel),     "--prompt",
                                         "Hello world", "--max-new-tokens", "12"};
  const auto with = [&](const std::vector<std::string>& more) {
    std::vector<std::string> all = base;
    all.insert(all.end(), more.begin(), more.end());
    const ProcessResult r = run_lorry(all);
    EXPECT_EQ(r.status, 0) << r.err;
    EXPECT_THAT(r.err, testing::AnyOf("", HasSubstr("was made for \"tiny/mixtral-base\"")));
    EXPECT_TRUE(r.out.ends_with('\n'));
    return r.out;
  };
  const std::string adapter = "x=" + golden(kAdapters + "all-linear-rslora-r16");
  EXPECT_EQ(with({}), with({}));
  EXPECT_NE(with({}), with({"--adapter", adapter}));
  EXPECT_EQ(with({"--temperature", "1", "--seed", "7"}),
            with({"--temperature", "1", "--seed", "7"}));
  EXPECT_NE(with({"--temperature", "2", "--seed", "7"}),
            with({"--temperature", "2", "--seed", "8"}));
  EXPECT_NE(with({}), with({"--chat"}));
  expect_one_line(run_lorry({"generate", golden(kModel), "--prompt", "x", "--adapter", "nobody"}),
                  1, "nobody");
  for (const char* command : {"generate", "chat"}) {
    std::vector<std::string> line = {command, golden(kModel), "--adapter", "x=/nowhere"};
    if (line[0] == "generate") line.insert(line.end(), {"--prompt", "x"});
    expect_one_line(run_lorry(line), 1, "\"/nowhere\" is no folder");
  }
}

TEST(Generate, ReadsThePromptFromAPipe) {
  const ProcessResult typed =
      run_lorry({"generate", golden(kModel), "--prompt", "Hello", "--max-new-tokens", "4"});
  const ProcessResult piped = run_lorry(
      {"generate", golden(kModel), "--prompt", "-", "--max-new-tokens", "4"}, {.in = "Hello"});
  EXPECT_EQ(piped.status, 0) << piped.err;
  EXPECT_EQ(piped.out, typed.out);
}

TEST(Generate, DraftsChangeNoText) {
  const std::vector<std::string> plain = {"generate", golden(kModel),     "--prompt",
                                          "Hello",    "--max-new-tokens", "80"};
  std::vector<std::string> drafted = plain;
  drafted.insert(drafted.end(), {"--speculative-tokens", "5"});
  const ProcessResult with = run_lorry(drafted);
  EXPECT_EQ(with.status, 0) << with.err;
  EXPECT_EQ(with.out, run_lorry(plain).out);
  drafted.back() = "65";
  expect_one_line(run_lorry(drafted), 2, "--speculative-tokens");
}

TEST(Chat, SwitchesAdaptersAndForgetsOverAPipe) {
  const std::string adapter = "twist=" + golden(kAdapters + "all-linear-rslora-r16");
  // The golden models answer with noise: one token never ends a line.
  const std::vector<std::string> command = {"chat", golden(kModel), "--max-new-tokens",
                                            "8",    "--adapter",    adapter};
  const auto chat = [&](const std::string& in) { return run_lorry(command, {.in = in}); };
  const ProcessResult twice = chat("Hello\n/reset\nHello\n");
  EXPECT_EQ(twice.status, 0) << twice.err;
  const std::string once = chat("Hello\n").out;
  EXPECT_EQ(twice.out, once + once);
  const std::string base = chat("/adapter none\nHello\n").out;
  EXPECT_NE(base, once);
  EXPECT_EQ(chat("/adapter none\n/adapter twist\nHello\n/quit\nnever\n").out, once);
  EXPECT_THAT(chat("/adapters\n").out, HasSubstr("* twist"));
  const ProcessResult unknown = chat("/adapter nobody\n/fly\nHello\n");
  EXPECT_THAT(unknown.err, HasSubstr("nobody"));
  EXPECT_THAT(unknown.err, HasSubstr("/fly"));
  EXPECT_EQ(unknown.out, once);
  EXPECT_THAT(chat("/help\n").out, HasSubstr("/adapters"));
}

TEST(Bench, warm_steps_compute_what_the_others_do) {
  const auto result = [](std::vector<std::string> more) {
    std::vector<std::string> command{"bench",   "--model", golden(kModel), "--kind", "decode",
                                     "--batch", "2",       "--reps",       "3",      "--json"};
    command.insert(command.end(), more.begin(), more.end());
    const ProcessResult r = run_lorry(command);
    EXPECT_EQ(r.status, 0) << r.err;
    return parse_json(r.out, "bench").at("results").at(0);
  };
  const json::value cold = result({}), warm = result({"--warm"});
  EXPECT_FALSE(cold.at("warm").as_bool());
  EXPECT_TRUE(warm.at("warm").as_bool());
  EXPECT_EQ(warm.at("logits_sha256"), cold.at("logits_sha256"));
  EXPECT_GT(warm.at("tokens_per_s").as_double(), 0);
}

}  // namespace
}  // namespace lorry
