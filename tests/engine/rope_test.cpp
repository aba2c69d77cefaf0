// Whole models with scaled rotary embeddings against transformers (tools/make_rope_cases.py), and
// the invariance of those whose frequencies depend on the sequence's length.
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <stdexcept>

#include <boost/json/serialize.hpp>
#include <gtest/gtest.h>

#include "base/files.h"
#include "base/json.h"
#include "engine/harness.h"
#include "weights/safetensors.h"

namespace lorry::test {
namespace {

// mixtral-base with another rope_scaling.
class ScaledModel {
 public:
  explicit ScaledModel(const std::string& kind) {
    std::string name = (std::filesystem::temp_directory_path() / "lorry_rope_XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) throw std::runtime_error("no temporary folder");
    path_ = name;
    std::filesystem::copy(golden("mixtral-base/model"), path_,
                          std::filesystem::copy_options::recursive);
    json::object config = parse_json_file(path_ + "/config.json").as_object();
    const json::value models = parse_json_file(golden("rope.json")).at("models");
    for (const auto& [key, value] : models.at(kind).as_object()) config[key] = value;
    write_file(path_ + "/config.json", json::serialize(config));
  }
  ~ScaledModel() { std::filesystem::remove_all(path_); }

  EngineOptions options() const {
    EngineOptions o = golden_options("mixtral-base", {});
    o.model = path_;
    return o;
  }

 private:
  std::string path_;
};

Prompt prompt(int32_t n) {
  Prompt p;
  for (int32_t i = 0; i < n; ++i) p.tokens.push_back((7 * i * i + 3 * i + 1) % 250);
  return p;
}

class ScaledRope : public testing::TestWithParam<const char*> {};

TEST_P(ScaledRope, logits_equal_transformers) {
  const ScaledModel model(GetParam());
  TestEngine engine(model.options());
  const auto file = SafetensorsFile::open(golden("rope.safetensors"), Access::read);
  const auto got = engine.run({logits_request(prompt(40)), logits_request(prompt(90))});
  for (const auto& sink : got) {
    ASSERT_EQ(sink->finish->reason, FinishReason::length);
    const Tensor want = file.tensor(std::string(GetParam()) + "." + std::to_string(sink->n_rows));
    double worst = 0;
    for (int64_t r = 0; r < want.shape[0]; ++r) {
      for (int64_t v = 0; v < want.shape[1]; ++v) {
        const float have = sink->logits[static_cast<size_t>(9 * r * want.shape[1] + v)];
        worst = std::max(worst, std::abs(static_cast<double>(have) -
                                         static_cast<double>(want.row<const float>(r)[v])));
      }
    }
    EXPECT_LE(worst, 2e-4) << sink->n_rows << " tokens";
  }
}

TEST_P(ScaledRope, chunks_batches_cache_and_preemption_change_no_bit) {
  const ScaledModel model(GetParam());
  EngineOptions o = model.options();
  o.prefix_cache = false;
  // Prompts and answers on both sides of the original 64 positions.
  std::vector<Request> requests;
  for (const int32_t n : {20, 50, 64, 65, 90, 50, 90}) {
    requests.push_back(greedy_request(prompt(n), 40));
    requests.back().sampling.logprobs = true;
  }
  std::vector<std::shared_ptr<Collector>> want;
  {
    TestEngine engine(o);
    for (const Request& r : requests) want.push_back(engine.run({r})[0]);
  }
  for (const int32_t chunk : {0, 7}) {
    o.prefix_cache = true;
    o.prefill_chunk = chunk;
    o.kv_tokens = chunk == 0 ? 8192 : 256;
    TestEngine engine(o);
    for (int round = 0; round < 2; ++round) {
      const auto got = engine.run(requests);
      for (size_t i = 0; i < got.size(); ++i) {
        ASSERT_EQ(got[i]->ids(), want[i]->ids()) << "request " << i << " chunk " << chunk;
        for (size_t k = 0; k < got[i]->tokens.size(); ++k) {
          EXPECT_EQ(got[i]->tokens[k].logprob, want[i]->tokens[k].logprob) << i;
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, ScaledRope,
                         testing::Values("linear", "dynamic", "llama3", "yarn", "longrope"));

}  // namespace
}  // namespace lorry::test
