// Activated LoRA: the rows from the last place on where the adapter's invocation tokens stand in
// the prompt use the adapter, all others are the base model's. Bitwise, whatever the batch.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <random>
#include <stdexcept>

#include <gtest/gtest.h>

#include "engine/harness.h"
#include "lorry/model.h"

namespace lorry::test {
namespace {

namespace fs = std::filesystem;
using Tokens = std::vector<int32_t>;

const Tokens kInvocation{7, 9, 7};

struct Case {
  std::string model, adapter;
};

const std::vector<Case> kCases = {{"mixtral-base", "all-linear-rslora-r16"},
                                  {"mixtral-sliding", "experts-r4"},
                                  {"dbrx-base", "attn-r8"}};

// A copy of a golden adapter with invocation tokens in its config.
class Activated {
 public:
  Activated(const std::string& folder, const std::string& tokens) {
    std::string name = (fs::temp_directory_path() / "lorry_alora_XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) throw std::runtime_error("no temporary folder");
    path_ = name;
    fs::copy(folder, path_, fs::copy_options::recursive);
    std::ifstream in(folder + "/adapter_config.json");
    std::string text{std::istreambuf_iterator<char>(in), {}};
    const std::string key = "\"alora_invocation_tokens\": ";
    text.replace(text.find(key + "null"), key.size() + 4, key + tokens);
    std::ofstream(path_ / "adapter_config.json", std::ios::trunc) << text;
  }
  Activated(const Activated&) = delete;
  Activated& operator=(const Activated&) = delete;
  ~Activated() { fs::remove_all(path_); }
  std::string str() const { return path_.string(); }

 private:
  fs::path path_;
};

// Tokens without the first one of the invocation.
Tokens filler(size_t n, uint32_t seed) {
  std::mt19937 random(seed);
  Tokens out(n);
  for (int32_t& t : out) t = 10 + static_cast<int32_t>(random() % 240);
  return out;
}

Tokens join(std::initializer_list<Tokens> parts) {
  Tokens out;
  for (const Tokens& p : parts) out.insert(out.end(), p.begin(), p.end());
  return out;
}

class Alora : public testing::TestWithParam<std::tuple<size_t, Dtype>> {
 protected:
  Alora()
      : plain_(golden(model_case().model + "/adapters/" + model_case().adapter)),
        activated_(plain_, "[7, 9, 7]"),
        other_(plain_, "[8, 9]") {}

  static const Case& model_case() { return kCases[std::get<0>(GetParam())]; }
  static Dtype dtype() { return std::get<1>(GetParam()); }

  EngineOptions options() const {
    EngineOptions o = golden_options(model_case().model, {});
    o.dtype = dtype();
    o.adapters = {{"plain", plain_}, {"activated", activated_.str()}, {"other", other_.str()}};
    return o;
  }
  // Alone, in one chunk, without the prefix cache.
  std::shared_ptr<Collector> alone(Request request) const {
    EngineOptions o = options();
    o.threads = 1;
    o.prefix_cache = false;
    TestEngine engine(o);
    return engine.run({std::move(request)})[0];
  }
  std::vector<float> logits(const Tokens& tokens, const std::string& adapter) const {
    return alone(logits_request({tokens, adapter}))->logits;
  }
  // Logits as two passes of the public Model: rows before `from` without the adapter.
  std::vector<float> in_two_passes(const Tokens& tokens, int32_t from) const {
    ModelOptions o;
    o.dtype = dtype();
    o.threads = 1;
    o.limits.max_tokens = 256;
    o.limits.max_logit_rows = 256;
    o.kv_blocks = 16;
    Model model(golden(model_case().model + "/model"), o);
    const int32_t adapter = model.load_adapter(plain_);
    const auto n = static_cast<int32_t>(tokens.size());
    Tokens table(16);
    std::iota(table.begin(), table.end(), 0);
    std::vector<float> out;
    const auto pass = [&](int32_t first, int32_t end, int32_t which) {
      const Tokens ids(tokens.begin() + first, tokens.begin() + end);
      Tokens positions(ids.size()), rows(ids.size());
      std::iota(positions.begin(), positions.end(), first);
      std::iota(rows.begin(), rows.end(), 0);
      const Tokens lens(ids.size(), n), cu{0, end - first}, kv{end}, adapters{which};
      const ForwardOutput f = model.forward(
          {ids, positions, lens, cu, kv, table, 16, positions, adapters, rows, Want::logits});
      for (int64_t r = 0; r < f.logits.shape[0]; ++r) {
        const float* row = f.logits.row<const float>(r);
        out.insert(out.end(), row, row + f.logits.shape[1]);
      }
    };
    pass(0, from, -1);
    pass(from, n, adapter);
    return out;
  }

  const std::string plain_;
  const Activated activated_, other_;
};

TEST_P(Alora, InvokedByTheFirstTokensItIsThePlainAdapter) {
  const Tokens prompt = join({kInvocation, filler(60, 1)});
  EXPECT_EQ(logits(prompt, "activated"), logits(prompt, "plain"));
  EXPECT_NE(logits(prompt, "activated"), logits(prompt, ""));
  expect_equal_tokens(*alone(scored({prompt, "activated"}, 20)),
                      *alone(scored({prompt, "plain"}, 20)), "generated");
}

TEST_P(Alora, NotInvokedItIsTheBaseModel) {
  for (const Tokens& prompt : {filler(60, 2), join({filler(20, 3), {7, 9}}),
                               join({{9, 7, 7, 9}, filler(9, 4)}), Tokens{7}}) {
    EXPECT_EQ(logits(prompt, "activated"), logits(prompt, ""));
    EXPECT_NE(logits(prompt, "activated"), logits(prompt, "plain"));
    expect_equal_tokens(*alone(scored({prompt, "activated"}, 20)), *alone(scored({prompt, ""}, 20)),
                        "generated");
  }
}

TEST_P(Alora, TheLastInvocationSplitsThePromptInBaseRowsAndAdapterRows) {
  const Tokens twice = join({filler(5, 5), kInvocation, filler(25, 6), kInvocation, filler(30, 7)});
  const Tokens overlapping = join({filler(14, 8), {7, 9, 7, 9, 7}, filler(8, 9)});
  const Tokens at_the_end = join({filler(45, 10), kInvocation});
  for (const auto& [prompt, from] : {std::pair{twice, 33}, {overlapping, 16}, {at_the_end, 45}}) {
    const std::vector<float> want = in_two_passes(prompt, from);
    const std::vector<float> base = logits(prompt, "");
    ASSERT_EQ(want.size(), base.size());
    const auto n_before =
        static_cast<std::ptrdiff_t>(want.size() / prompt.size() * static_cast<size_t>(from));
    EXPECT_TRUE(std::equal(base.begin(), base.begin() + n_before, want.begin()));
    EXPECT_FALSE(std::equal(base.begin() + n_before, base.end(), want.begin() + n_before));
    for (const int32_t chunk : {1, 16, 0}) {
      EngineOptions o = options();
      o.prefill_chunk = chunk;
      TestEngine engine(o);
      const auto got = engine.run({logits_request({prompt, "activated"})})[0];
      EXPECT_EQ(got->logits, want) << "chunks of " << chunk << ", from " << from;
    }
  }
}

TEST_P(Alora, ABatchOfAllKindsIsWhatEachIsAlone) {
  std::vector<Prompt> prompts;
  for (uint32_t i = 0; i < 24; ++i) {
    const Tokens before = filler(i * 5 % 41, 100 + i), after = filler(i * 7 % 23, 200 + i);
    const Tokens invocation = i % 2 == 0 ? kInvocation : Tokens{8, 9};
    const char* const names[] = {"activated", "other", "", "plain"};
    prompts.push_back({join({before, invocation, after}), names[i % 4]});
  }
  EngineOptions o = options();
  o.max_sequences = 16;
  o.max_batch_tokens = 64;
  o.max_logit_rows = 64;
  o.kv_tokens = model_case().model == "mixtral-sliding" ? 112 : 320;
  if (model_case().model == "mixtral-sliding") o.prefill_chunk = 16;
  TestEngine engine(o);
  std::vector<std::shared_ptr<Collector>> want;
  for (const Prompt& p : prompts) want.push_back(alone(scored(p, 40)));
  // Who is preempted depends on when requests arrive.
  for (int round = 0; round < 20 && engine->stats().preemptions == 0; ++round) {
    std::vector<Request> requests;
    for (const Prompt& p : prompts) requests.push_back(scored(p, 40));
    const auto got = engine.run(std::move(requests));
    for (size_t i = 0; i < got.size(); ++i) {
      expect_equal_tokens(*got[i], *want[i], "prompt " + std::to_string(i));
    }
  }
  EXPECT_GT(engine->stats().preemptions, 0);
}

TEST_P(Alora, ThePrefixBeforeTheInvocationIsSharedAndNoRowOfAnAdapter) {
  const Tokens prompt = join({filler(50, 11), kInvocation, {8, 9}, filler(60, 12)});
  // Invoked at 50 and 53: three blocks are the base model's.
  const std::vector<std::pair<std::string, int32_t>> steps = {
      {"", 0},      {"activated", 48}, {"activated", 112}, {"other", 48},
      {"plain", 0}, {"", 112},         {"other", 112}};
  TestEngine engine(options());
  for (const auto& [adapter, cached] : steps) {
    const auto got = engine.run({scored({prompt, adapter}, 12)})[0];
    expect_equal_tokens(*got, *alone(scored({prompt, adapter}, 12)), adapter);
    EXPECT_EQ(got->finish->cached_tokens, cached) << adapter;
  }
  // And the other way round: what an activated adapter left serves the base model.
  TestEngine second(options());
  second.run({scored({prompt, "activated"}, 1)});
  const auto got = second.run({scored({prompt, ""}, 12)})[0];
  expect_equal_tokens(*got, *alone(scored({prompt, ""}, 12)), "base");
  EXPECT_EQ(got->finish->cached_tokens, 48);
}

INSTANTIATE_TEST_SUITE_P(Cases, Alora,
                         testing::Combine(testing::Range(size_t{0}, kCases.size()),
                                          testing::Values(Dtype::f32, Dtype::bf16)),
                         [](const auto& p) {
                           return test_name(kCases[std::get<0>(p.param)].model,
                                            std::get<1>(p.param));
                         });

}  // namespace
}  // namespace lorry::test
