// EngineCore: what the engine thread owns and does: requests, adapters, scheduling, the model, the
// choice of tokens. Single-threaded but for counters(), which any thread may read.
#pragma once
#include <atomic>
#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "adapters/registry.h"
#include "engine/batch.h"
#include "engine/drafter.h"
#include "engine/engine.h"
#include "engine/leader.h"
#include "engine/loaded_model.h"
#include "engine/sampler.h"
#include "engine/scheduler.h"
#include "engine/step_counter.h"
#include "engine/stop_texts.h"
#include "engine/verify.h"

namespace lorry {

// EngineStats as atomics: written by the engine thread, read by any.
struct AdapterTierCounters {
  std::atomic<int64_t> bytes{0}, used_bytes{0}, loads{0}, evictions{0};
};
struct EngineCounters {
  std::atomic<int64_t> running{0}, waiting{0}, waiting_for_adapter{0}, steps{0}, preemptions{0},
      parked{0}, finished{0}, failed{0}, prompt_tokens{0}, generated_tokens{0}, prefix_queries{0},
      prefix_hits{0}, kv_blocks{0}, kv_blocks_free{0}, step_microseconds{0}, last_batch_tokens{0},
      last_batch_sequences{0}, nan_total{0}, draft_tokens{0}, draft_tokens_kept{0},
      adapter_load_failures{0};
  AdapterTierCounters adapters_device, adapters_host;
  StepCounter rows_of_steps, sequences_of_steps, milliseconds_of_steps;
};

class EngineCore {
 public:
  using Clock = std::chrono::steady_clock;
  using Loaded = std::function<void(const Error*)>;  // null: it worked

  struct Callbacks {
    std::function<void()> wake;  // by loader threads
    // Before each on_finish: who hears it may send the next request at once.
    std::function<void()> released;
    AdapterLoaded loaded;  // by loader threads
  };

  // `tokenizer` may be null (synthetic models): then requests with stop texts are refused.
  EngineCore(const EngineOptions& options, LoadedModel& model, const Tokenizer* tokenizer,
             Callbacks callbacks);
  ~EngineCore();

  // Requires: checked by Engine::submit.
  void add(RequestId id, Request request, Clock::time_point submitted);
  void cancel(RequestId id);
  void cancel_all();
  // One step. False: nothing can run until something else happens.
  bool step();

  // Whether a sequence of that many tokens can ever run. Reads constants only: any thread.
  bool fits(int64_t total_tokens) const { return scheduler_.fits(total_tokens); }
  AdapterSnapshot adapters() const { return registry_.snapshot(); }
  // As Engine's; `done` is called once, at cancel_all() at the latest.
  void load_adapter(const AdapterLoad& load, Loaded done);
  // Loads what requests will ask for.
  void preload(const AdapterRef& ref, Loaded done);
  bool unload_adapter(const std::string& name) { return registry_.unregister_name(name); }
  const EngineCounters& counters() const { return counters_; }

 private:
  // A request between add() and its finish.
  struct Active {
    Request request;
    Sequence seq;
    AdapterHandle handle;
    bool has_adapter = false;
    AdapterView view;        // valid while scheduled
    bool scheduled = false;  // at the scheduler, its adapter pinned
    int32_t generated = 0;
    int32_t cached = 0;           // prompt tokens found in the prefix cache
    bool preempted = false;       // was, or parked: later hits are its own work computed before
    int32_t prompt_reported = 1;  // prompt tokens whose log-probability was delivered
    int32_t logits_reported = 0;
    std::unique_ptr<StopTexts> stops;       // only with stop texts
    std::optional<Constraint> constraint;   // only with a grammar, from the first choice on
    std::unique_ptr<NgramDrafter> drafter;  // from the first draft on
    DraftPace pace{kMedusaChance};          // of the guesses of Medusa heads
    int32_t skipped = 0;                    // generated tokens that were drafts
    Clock::time_point submitted, started, first_token;
    bool has_started = false, has_token = false;
  };

  // The rows of a sequence to choose tokens from.
  struct Choice {
    Active* active = nullptr;
    ChosenRows rows;
    Tensor heads;  // [rows, heads, V]: of its adapter's Medusa heads
    Verified verified;
    std::vector<int32_t> guesses;  // of the heads, for the tokens behind verified.tokens
  };

  // A prompt token whose log-probability was asked for.
  struct Score {
    Active* active = nullptr;
    const float* logits = nullptr;  // of the position before
    int32_t position = 0;
    SampledToken token;
  };

  // A load that nobody but its caller waits for.
  struct Loading {
    AdapterHandle handle;
    bool publish = false;
    Loaded done;
  };

  void admit();
  // With several ranks: what they have to say while nothing runs. False: nothing is expected.
  bool hear_ranks();
  void end_loads();
  // Takes the requests of that content from the scheduler, to wait for its next turn.
  void park(int32_t content);
  // False: its adapter is not ready, or it is not its turn.
  bool schedule(Active& active);
  void run(const StepPlan& plan);
  bool takes_best_alone(const StepPlan& plan) const;
  void deliver(const StepPlan& plan, const ForwardOutput& out);
  void deliver_prompt(Active& active, const BatchEntry& entry, const ForwardOutput& out);
  void score_prompts();
  void choose_tokens();
  static void choose(Choice& choice, Sampler& sampler);  // on any compute thread
  // The tokens that it has got, then its next drafts or its finish.
  void take(Choice& choice);
  // False: it was the last, and the request is gone.
  bool accept(Active& active, const SampledToken& token, bool was_draft);
  void draft(Active& active, std::span<const int32_t> guesses);
  void finish(Active& active, FinishReason reason, std::optional<Error> error = {},
              std::string stop_sequence = {});
  void update_counters();

  const EngineOptions options_;
  const std::chrono::nanoseconds cycle_time_;
  LoadedModel& model_;
  const Tokenizer* tokenizer_;
  std::function<void()> released_;
  std::vector<int32_t> eos_ids_;
  Leader leader_;
  AdapterRegistry registry_;
  Scheduler scheduler_;
  BatchBuilder batch_;
  std::vector<std::unique_ptr<Sampler>> samplers_;  // one per compute thread
  std::unordered_map<RequestId, std::unique_ptr<Active>> requests_;
  std::deque<RequestId> unscheduled_;  // waiting for their adapter, in order
  std::vector<Loading> loads_;
  std::chrono::nanoseconds usual_step_{};  // a running average
  std::vector<Choice> choices_;
  std::vector<Score> scores_;
  EngineCounters counters_;
};

}  // namespace lorry
