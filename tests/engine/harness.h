// Runs requests on a real engine over the golden models and collects what their sinks were told.
#pragma once
#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "base/log.h"
#include "engine/engine.h"

namespace lorry::test {

inline std::string golden(const std::string& path) {
  return std::string(LORRY_SOURCE_DIR) + "/tests/golden/" + path;
}

// The device that engines of tests run on: engine_device.cpp, or another file of the program.
std::string test_device();
// What links the devices of ranks; empty: there are none.
std::string test_nccl();

// Everything that one request was told.
class Collector final : public RequestSink {
 public:
  explicit Collector(int64_t vocab) : vocab_(vocab) {}

  void on_logits(int64_t first, int64_t n, const float* rows, int64_t pitch) override {
    if (first != n_rows) out_of_order = true;
    for (int64_t r = 0; r < n; ++r) {
      logits.insert(logits.end(), rows + r * pitch, rows + r * pitch + vocab_);
    }
    n_rows += n;
  }
  void on_prompt_token(const TokenEvent& e) override { prompt.push_back(e.token); }
  void on_start() override {
    ++n_starts;
    EXPECT_TRUE(prompt.empty() && tokens.empty() && n_rows == 0);
  }
  void on_token(const TokenEvent& e) override {
    tokens.push_back(e.token);
    positions.push_back(e.position);
    n_skipped += e.skipped ? 1 : 0;
  }
  void on_finish(const FinishEvent& e) override {
    {
      std::lock_guard lock(mutex_);
      finish = e;
    }
    done_.notify_all();
  }
  void wait() {
    std::unique_lock lock(mutex_);
    done_.wait(lock, [&] { return finish.has_value(); });
  }
  std::vector<int32_t> ids() const {
    std::vector<int32_t> out;
    for (const SampledToken& t : tokens) out.push_back(t.id);
    return out;
  }

  // To be read after wait().
  std::vector<float> logits;
  int64_t n_rows = 0;
  bool out_of_order = false;
  std::vector<SampledToken> prompt, tokens;
  std::vector<int64_t> positions;  // of tokens
  int n_starts = 0;
  int32_t n_skipped = 0;  // tokens
  std::optional<FinishEvent> finish;

 private:
  const int64_t vocab_;
  std::mutex mutex_;
  std::condition_variable done_;
};

struct Prompt {
  std::vector<int32_t> tokens;
  std::string adapter;
};

inline Request logits_request(const Prompt& p) {
  Request r;
  r.prompt = p.tokens;
  r.adapter = p.adapter;
  r.want_logits = true;
  return r;
}

inline Request greedy_request(const Prompt& p, int32_t n) {
  Request r;
  r.prompt = p.tokens;
  r.adapter = p.adapter;
  r.max_new_tokens = n;
  r.ignore_eos = true;
  return r;
}

// With what expect_equal_tokens compares.
inline Request scored(const Prompt& p, int32_t n) {
  Request r = greedy_request(p, n);
  r.sampling.logprobs = true;
  r.sampling.raw_logprobs = true;
  r.sampling.alternatives = 8;
  return r;
}

// Bit by bit.
inline void expect_equal_tokens(const Collector& a, const Collector& b, const std::string& what) {
  ASSERT_EQ(a.ids(), b.ids()) << what;
  for (size_t i = 0; i < a.tokens.size(); ++i) {
    EXPECT_EQ(std::memcmp(&a.tokens[i].logprob, &b.tokens[i].logprob, sizeof(float)), 0) << what;
    ASSERT_EQ(a.tokens[i].alternatives.size(), b.tokens[i].alternatives.size());
    for (size_t k = 0; k < a.tokens[i].alternatives.size(); ++k) {
      EXPECT_EQ(a.tokens[i].alternatives[k].id, b.tokens[i].alternatives[k].id) << what;
      EXPECT_EQ(a.tokens[i].alternatives[k].logprob, b.tokens[i].alternatives[k].logprob) << what;
    }
  }
}

// Names of parametrised tests.
inline std::string test_name(std::string model) {
  std::replace(model.begin(), model.end(), '-', '_');
  return model;
}
inline std::string test_name(const std::string& model, Dtype dtype) {
  return test_name(model) + "_" + to_string(dtype);
}

class TestEngine {
 public:
  explicit TestEngine(EngineOptions options)
      : log_({LogLevel::error}), engine_(on_test_device(std::move(options)), log_) {}

  Engine& operator*() { return engine_; }
  Engine* operator->() { return &engine_; }
  const Engine* operator->() const { return &engine_; }

  std::shared_ptr<Collector> start(Request request) {
    auto sink = std::make_shared<Collector>(engine_.info().spec.vocab);
    request.sink = sink;
    engine_.submit(std::move(request));
    return sink;
  }
  // All at once, so that they share batches.
  std::vector<std::shared_ptr<Collector>> run(std::vector<Request> requests) {
    std::vector<std::shared_ptr<Collector>> sinks;
    for (Request& r : requests) sinks.push_back(start(std::move(r)));
    for (auto& s : sinks) s->wait();
    return sinks;
  }

 private:
  static EngineOptions on_test_device(EngineOptions o) {
    o.device = test_device();
    return o;
  }
  Log log_;
  Engine engine_;
};

// A small engine over a golden case, with all its adapters under their folder names.
inline EngineOptions golden_options(const std::string& model_case,
                                    const std::vector<std::string>& adapters) {
  EngineOptions o;
  o.device = test_device();
  o.nccl_library = test_nccl();
  o.model = golden(model_case + "/model");
  o.dtype = Dtype::f32;
  o.check_ops = true;
  o.threads = 2;
  o.kv_tokens = 8192;
  o.max_sequences = 128;
  o.max_batch_tokens = 4096;
  o.max_logit_rows = 4096;
  o.adapter_memory = 64 << 20;
  for (const std::string& a : adapters) {
    o.adapters.emplace_back(a, golden(model_case + "/adapters/" + a));
  }
  return o;
}

// Requests have the tokens and the end that each has by itself, on one thread and without a cache:
// together, from a warm cache, with drafts, preempted.
inline void expect_alone_decides(const EngineOptions& options,
                                 const std::vector<Request>& requests) {
  EngineOptions alone_options = options;
  alone_options.threads = 1;
  alone_options.prefix_cache = false;
  TestEngine alone(alone_options);
  std::vector<std::shared_ptr<Collector>> want;
  for (const Request& r : requests) want.push_back(alone.run({r})[0]);

  const auto expect_same = [&](TestEngine& engine, const char* what) {
    const auto got = engine.run(requests);
    for (size_t i = 0; i < got.size(); ++i) {
      expect_equal_tokens(*got[i], *want[i], what);
      EXPECT_EQ(got[i]->finish->reason, want[i]->finish->reason) << what;
    }
  };
  EngineOptions drafting = options;
  drafting.speculative_tokens = 6;
  for (const auto& [what, o] : {std::pair{"together", options}, std::pair{"drafts", drafting}}) {
    TestEngine engine(o);
    for (int round = 0; round < 2; ++round) expect_same(engine, what);
  }
  EngineOptions tight = options;
  tight.kv_tokens = 512;
  TestEngine engine(tight);
  // Who is preempted depends on when requests arrive.
  for (int round = 0; round < 20 && engine->stats().preemptions == 0; ++round) {
    expect_same(engine, "preempted");
  }
  EXPECT_GT(engine->stats().preemptions, 0);
}

}  // namespace lorry::test
