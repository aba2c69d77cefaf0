// A Backend whose answers a test writes down: a thread gives every running request one token per
// round, as an engine's steps do.
#pragma once
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/error.h"
#include "serve/backend.h"

namespace lorry {

struct Script {
  std::vector<TokenEvent> prompt_tokens;
  std::vector<TokenEvent> tokens;
  FinishEvent finish;
  bool never_ends = false;    // repeats its tokens until cancelled
  bool never_starts = false;  // stays in the queue until cancelled
};

inline TokenEvent token_event(int32_t id, float logprob = -0.5F,
                              std::vector<TokenProbability> alternatives = {}) {
  TokenEvent event;
  event.token = {id, logprob, std::move(alternatives)};
  return event;
}

class ScriptedBackend final : public Backend {
 public:
  using Plan = std::function<Script(const Request&)>;

  // `model_folder`: whose tokenizer is used.
  explicit ScriptedBackend(const std::string& model_folder)
      : tokenizer_(Tokenizer::load(model_folder)) {
    info_.name = "tiny";
    info_.digest = "00ff";
    info_.spec.vocab = tokenizer_.vocab_size();
    info_.max_total_tokens = 256;
    plan_ = [this](const Request& request) { return say("Hello wörld 🙂", request); };
    thread_ = std::thread([this] { run(); });
  }
  ~ScriptedBackend() override {
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }

  // What an engine that wants to say `text` and then end answers.
  Script say(const std::string& text, const Request& request) const {
    Script script;
    EncodeOptions plain;
    plain.add_special = false;
    for (const int32_t id : tokenizer_.encode(text, plain))
      script.tokens.push_back(token_event(id));
    script.tokens.push_back(token_event(tokenizer_.eos_ids().front()));
    script.finish.reason = FinishReason::eos_token;
    if (script.tokens.size() > static_cast<size_t>(request.max_new_tokens)) {
      script.tokens.resize(static_cast<size_t>(request.max_new_tokens));
      script.finish.reason = FinishReason::length;
    }
    return script;
  }
  static Script failing(Code code, const std::string& message) {
    Script script;
    script.finish.reason = FinishReason::failed;
    script.finish.error = Error(code, message);
    return script;
  }

  void set_plan(Plan plan) {
    std::lock_guard lock(mutex_);
    plan_ = std::move(plan);
  }
  void set_round(std::chrono::milliseconds time) { round_ms_.store(time.count()); }
  void set_capacity(size_t n) { capacity_.store(n); }
  void set_stuck(double seconds) { stuck_.store(seconds); }
  void set_max_total_tokens(int64_t n) { info_.max_total_tokens = n; }
  void set_load_error(std::optional<Error> error) { load_error_ = std::move(error); }
  const std::vector<AdapterLoad>& loads() const { return loads_; }
  void set_adapters(AdapterSnapshot snapshot) { adapters_ = std::move(snapshot); }

  std::vector<Request> submitted() const {
    std::lock_guard lock(mutex_);
    return submitted_;
  }
  Request last() const {
    const auto all = submitted();
    return all.empty() ? Request() : all.back();
  }
  size_t running() const {
    std::lock_guard lock(mutex_);
    return running_.size();
  }
  size_t cancelled() const {
    std::lock_guard lock(mutex_);
    return cancelled_;
  }

  RequestId submit(Request request) override {
    std::lock_guard lock(mutex_);
    if (running_.size() >= capacity_.load()) throw Error(Code::over_capacity, "full");
    const RequestId id = next_id_++;
    Request copy = request;
    copy.sink.reset();
    submitted_.push_back(std::move(copy));
    running_[id] = {plan_(request), request.sink, 0, request.prompt.size(), false};
    changed_.notify_all();
    return id;
  }
  void cancel(RequestId id) override {
    std::lock_guard lock(mutex_);
    if (running_.count(id) > 0) cancelling_.insert(id);
    changed_.notify_all();
  }
  const ModelInfo& info() const override { return info_; }
  const Tokenizer& tokenizer() const override { return tokenizer_; }
  EngineStats stats() const override {
    EngineStats stats;
    stats.adapters_device = {.bytes = 1000, .used_bytes = 600, .loads = 9, .evictions = 5};
    stats.adapters_host = {.bytes = 0, .used_bytes = 0, .loads = 3, .evictions = 0};
    stats.adapter_load_failures = 2;
    stats.parked = 7;
    StepCounter rows, sequences, milliseconds;
    for (const int64_t n : {4, 8, 12}) {
      rows.add(n);
      sequences.add(n / 4);
      milliseconds.add(n - 4);
    }
    stats.steps = 3;
    stats.rows_of_steps = rows.read();
    stats.sequences_of_steps = sequences.read();
    stats.milliseconds_of_steps = milliseconds.read();
    stats.running = static_cast<int64_t>(running());
    stats.kv_blocks = 10;
    stats.kv_blocks_free = 5;
    return stats;
  }
  void load_adapter(AdapterLoad load, std::function<void(const Error*)> done) override {
    loads_.push_back(load);
    std::thread([answer = load_error_, done = std::move(done)] {
      done(answer ? &*answer : nullptr);
    }).detach();
  }
  void unload_adapter(const std::string& name) override {
    if (name != "known") throw Error(Code::not_found, "adapter '" + name + "' not found");
  }
  AdapterSnapshot adapters() const override { return adapters_; }
  double stuck_seconds() const override { return stuck_.load(); }

 private:
  std::vector<AdapterLoad> loads_;
  std::optional<Error> load_error_;
  struct Running {
    Script script;
    std::shared_ptr<RequestSink> sink;
    size_t next = 0;
    size_t prompt = 0;
    bool started = false;
  };

  void run() {
    std::unique_lock lock(mutex_);
    while (!stopping_) {
      changed_.wait(lock, [&] { return stopping_ || !running_.empty(); });
      for (auto it = running_.begin(); it != running_.end();) {
        it = step(it->first, it->second) ? running_.erase(it) : std::next(it);
      }
      lock.unlock();
      std::this_thread::sleep_for(std::chrono::milliseconds(round_ms_.load()));
      lock.lock();
    }
  }

  // True when the request has ended.
  bool step(RequestId id, Running& request) {
    Script& script = request.script;
    if (cancelling_.erase(id) > 0) {
      ++cancelled_;
      FinishEvent finish;
      finish.reason = FinishReason::cancelled;
      request.sink->on_finish(finish);
      return true;
    }
    if (script.never_starts) return false;
    if (request.next == 0) {
      if (!std::exchange(request.started, true)) request.sink->on_start();
      for (const TokenEvent& event : script.prompt_tokens) request.sink->on_prompt_token(event);
    }
    const size_t n = script.tokens.size();
    if (n > 0 && (request.next < n || script.never_ends)) {
      request.sink->on_token(script.tokens[request.next++ % n]);
    }
    if (script.never_ends || request.next < n) return false;
    script.finish.prompt_tokens = static_cast<int32_t>(request.prompt);
    script.finish.generated_tokens = static_cast<int32_t>(n);
    script.finish.queue_seconds = 0.001;
    script.finish.prefill_seconds = 0.002;
    script.finish.decode_seconds = 0.004;
    request.sink->on_finish(script.finish);
    return true;
  }

  Tokenizer tokenizer_;
  ModelInfo info_;
  AdapterSnapshot adapters_;
  std::atomic<int64_t> round_ms_{0};
  std::atomic<size_t> capacity_{1000};
  std::atomic<double> stuck_{0};
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  Plan plan_;
  std::map<RequestId, Running> running_;
  std::set<RequestId> cancelling_;
  std::vector<Request> submitted_;
  RequestId next_id_ = 1;
  size_t cancelled_ = 0;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace lorry
