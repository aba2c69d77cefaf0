// `lorry logits`: the same bytes however the prompts are run, and the golden values.
#include <cmath>
#include <filesystem>
#include <map>

#include <boost/json/serialize.hpp>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/files.h"
#include "base/float16.h"
#include "base/json.h"
#include "cli/process.h"
#include "weights/safetensors.h"
#include "weights/slice.h"

namespace lorry {
namespace {

using testing::HasSubstr;
using testing::Not;

const std::string kCase = "mixtral-base/";

// Each prompt of the golden case without an adapter, and with two.
struct Fixture {
  Fixture() {
    const json::object g = parse_json_file(golden(kCase + "golden.json")).as_object();
    json::array prompts;
    for (const json::value& run : g.at("runs").as_array()) {
      const json::value& adapter = run.at("adapter");
      if (!adapter.is_null() && adapter != "attn-r8" && adapter != "experts-r8") continue;
      const json::value& tokens =
          g.at("prompts").at(std::string_view(run.at("prompt").as_string()));
      prompts.push_back(json::object{{"tokens", tokens}, {"adapter", adapter}});
      golden_names.emplace_back(run.at("logits").as_string());
    }
    folder.write("prompts.json", json::serialize(prompts));
  }

  std::vector<std::string> command(const std::string& out) const {
    return {"logits",    golden(kCase + "model"),
            "--prompts", folder.path("prompts.json"),
            "--out",     folder.path(out),
            "--adapter", "attn-r8=" + golden(kCase + "adapters/attn-r8"),
            "--adapter", "experts-r8=" + golden(kCase + "adapters/experts-r8")};
  }

  std::string bytes(const std::string& out, const std::vector<std::string>& more) const {
    std::vector<std::string> all = command(out);
    all.insert(all.end(), more.begin(), more.end());
    const ProcessResult r = run_lorry(all);
    EXPECT_EQ(r.status, 0) << r.err;
    return read_file(folder.path(out));
  }

  TestFolder folder;
  std::vector<std::string> golden_names;  // of logits.0, logits.1, ...
};

TEST(Logits, MixedBatchEqualsOneByOneBitForBit) {
  const Fixture f;
  ASSERT_GE(f.golden_names.size(), 6U);
  for (const char* dtype : {"bfloat16", "float16", "float32"}) {
    const std::string mixed = f.bytes("mixed", {"--dtype", dtype});
    EXPECT_TRUE(mixed == f.bytes("single", {"--dtype", dtype, "--one-by-one"})) << dtype;
    EXPECT_TRUE(mixed == f.bytes("chunks", {"--dtype", dtype, "--prefill-chunk", "3"})) << dtype;
    EXPECT_TRUE(mixed == f.bytes("thread", {"--dtype", dtype, "--threads", "1"})) << dtype;
  }
}

TEST(Logits, AreThoseOfTheGoldenCase) {
  const Fixture f;
  f.bytes("out", {"--dtype", "float32"});
  const auto ours = SafetensorsFile::open(f.folder.path("out"), Access::read);
  const auto theirs = SafetensorsFile::open(golden(kCase + "golden.safetensors"), Access::read);
  ASSERT_EQ(ours.tensors().size(), f.golden_names.size());
  for (size_t i = 0; i < f.golden_names.size(); ++i) {
    const Tensor a = ours.tensor("logits." + std::to_string(i));
    const Tensor b = theirs.tensor(f.golden_names[i]);
    ASSERT_EQ(a.dtype, Dtype::f32);
    ASSERT_EQ(a.shape.size(), b.shape.size());
    ASSERT_EQ(a.cols(), b.cols());
    float worst = 0;
    for (int64_t j = 0; j < a.shape.size(); ++j) {
      worst = std::max(worst, std::abs(a.row<float>(0)[j] - b.row<float>(0)[j]));
    }
    EXPECT_LE(worst, 2e-4F) << f.golden_names[i];
  }
}

// In float16 such a checkpoint is computed with as it is: rounded once more it gives the same bits.
TEST(Logits, OfACheckpointInFloat16) {
  const Fixture f;
  const auto original =
      SafetensorsFile::open(golden(kCase + "model/model.safetensors"), Access::read);
  std::map<std::string, Tensor> tensors;
  std::vector<std::vector<f16>> memory;
  for (const TensorInfo& info : original.tensors()) {
    memory.emplace_back(static_cast<size_t>(info.shape.size()));
    tensors[info.name] = view(memory.back().data(), Dtype::f16, info.shape);
    copy(tensors[info.name], original.tensor(info));
  }
  std::filesystem::create_directory(f.folder.path("half"));
  write_safetensors(f.folder.path("half/model.safetensors"), tensors);
  for (const std::string name : {"config.json", "tokenizer.json"}) {
    write_file(f.folder.path("half/" + name), read_file(golden(kCase + "model/" + name)));
  }
  f.folder.write("prompts.json", R"([{"tokens": [1, 5, 9, 200]}])");
  const auto bits = [&](const std::string& model) {
    const ProcessResult r = run_lorry({"logits", model, "--prompts", f.folder.path("prompts.json"),
                                       "--out", f.folder.path("out"), "--dtype", "float16"});
    EXPECT_EQ(r.status, 0) << r.err;
    return read_file(f.folder.path("out"));
  };
  EXPECT_TRUE(bits(f.folder.path("half")) == bits(golden(kCase + "model")));
  const auto says = [&](const char* dtype) {
    return run_lorry({"bench", "--model", f.folder.path("half"), "--kind", "decode", "--context",
                      "8", "--batch", "1", "--reps", "1", "--dtype", dtype})
        .err;
  };
  EXPECT_THAT(says("float16"), Not(HasSubstr("rounded to bfloat16")));
  EXPECT_THAT(says("bfloat16"), HasSubstr("--dtype float16 keeps it"));
}

TEST(Logits, ErrorsNameThePromptAndTheAdapterAndLeaveNoFile) {
  const Fixture f;
  const auto fails = [&](const std::string& prompts, const std::vector<std::string>& more,
                         const std::string& text) {
    f.folder.write("prompts.json", prompts);
    std::vector<std::string> all = f.command("none");
    all.insert(all.end(), more.begin(), more.end());
    const ProcessResult r = run_lorry(all);
    EXPECT_EQ(r.status, 1);
    EXPECT_THAT(r.err, HasSubstr(text));
    EXPECT_FALSE(file_exists(f.folder.path("none")));
  };
  f.folder.write("adapter_config.json",
                 R"({"peft_type": "LORA", "r": 8, "lora_alpha": 8, "bias": "all"})");
  const std::string biased = "biased=" + f.folder.path(".");
  const std::string two = R"([{"tokens":[1,2]},{"tokens":[1,2],"adapter":"biased"}])";
  for (const char* how : {"--threads=1", "--one-by-one"}) {
    fails(two, {"--adapter", biased, how}, "prompt 1 with adapter \"biased\"");
    fails(two, {"--adapter", biased, how}, "bias is \"all\"");
    fails(two, {how}, "biased");
    fails(R"([{"tokens":[1]},{"tokens":[99999]}])", {how}, "prompt 1");
  }
  fails("[]", {}, "expected a list");
  fails("[1]", {}, "prompt 0");
  fails(R"([{"tokens":[]}])", {}, "no tokens");
  fails(R"([{"tokens":[1.5]}])", {}, "no token id");
  fails(R"([{"tokens":[1],"adaptor":"x"}])", {}, "adaptor");
  fails(R"([{"tokens":[1]}])", {"--adapter", "attn-r8"}, "NAME=FOLDER");
}

}  // namespace
}  // namespace lorry
