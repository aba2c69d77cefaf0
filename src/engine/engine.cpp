#include "engine/engine.h"

#include <algorithm>
#include <future>
#include <thread>
#include <variant>

#include "base/bounded_queue.h"
#include "base/error.h"
#include "base/system.h"
#include "base/text.h"
#include "engine/core.h"
#include "engine/loaded_model.h"
#include "models/synthetic.h"

namespace lorry {

namespace {

using Clock = EngineCore::Clock;

struct Submit {
  RequestId id;
  Request request;
  Clock::time_point at;
};
struct Cancel {
  RequestId id;
};
struct Ask {  // run on the engine thread between two steps
  std::function<void(EngineCore&)> question;
};
struct Nudge {};  // look again: a loader has finished

using Command = std::variant<Submit, Cancel, Ask, Nudge>;

int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now().time_since_epoch())
      .count();
}

std::optional<Tokenizer> load_tokenizer(const std::string& model) {
  if (is_synthetic(model)) return std::nullopt;
  return Tokenizer::load(model);
}

EngineStats::AdapterTier tier_of(const AdapterTierCounters& c) {
  return {c.bytes, c.used_bytes, c.loads, c.evictions};
}

// In lower case.
std::string last_part(std::string_view path) {
  while (path.ends_with('/')) path.remove_suffix(1);
  return lower_case(path.substr(path.rfind('/') + 1));
}

// Shapes and sites decide whether an adapter is for this model; another name is worth a warning.
void log_loaded(Log& log, const std::string& model, const std::string& name, const Adapter& a) {
  log.info("adapter {} loaded: sha256:{}, {} sites, rank at most {}, {}", quote(name),
           to_hex(a.digest()), a.sites().size(), a.max_rank(), format_bytes(a.bytes()));
  // Folders are named freely: a part of the name is enough.
  const std::string made_for = last_part(a.base_model());
  const std::string own = last_part(model);
  if (made_for.find(own) != made_for.npos || own.find(made_for) != own.npos) return;
  log.warn("adapter {} was made for {}; this model is {}. Its shapes fit, so it is used",
           quote(name), quote(a.base_model()), quote(model));
}

}  // namespace

class Engine::Impl {
 public:
  Impl(EngineOptions options, Log& log)
      : options_(std::move(options)),
        model_(load_model(options_, log)),
        tokenizer_(load_tokenizer(options_.model)),
        // A cancellation for each request and room for questions and nudges.
        inbox_(static_cast<size_t>(options_.max_requests) * 2 + 64),
        core_(options_, *model_, tokenizer_ ? &*tokenizer_ : nullptr,
              {.wake = [this] { nudge(); },
               .released = [this] { in_flight_.fetch_sub(1); },
               .loaded = [&log, model = model_->info.name](
                             const std::string& name,
                             const Adapter& adapter) { log_loaded(log, model, name, adapter); }}),
        thread_([this] { run(); }) {}

  ~Impl() {
    inbox_.close();
    stopping_ = true;
    thread_.join();
  }

  RequestId submit(Request request) {
    check(request);
    if (draining_) throw Error(Code::unavailable, "the server is shutting down");
    int32_t n = in_flight_.load();
    do {
      if (n >= options_.max_requests) throw Error(Code::over_capacity, "Model is overloaded");
    } while (!in_flight_.compare_exchange_weak(n, n + 1));
    const RequestId id = next_id_.fetch_add(1);
    if (!inbox_.try_push(Submit{id, std::move(request), Clock::now()})) {
      in_flight_.fetch_sub(1);
      throw Error(Code::over_capacity, "Model is overloaded");
    }
    return id;
  }

  void cancel(RequestId id) {
    // The inbox holds only what is waiting for the current step to end; it has room again soon.
    while (!inbox_.try_push(Cancel{id}) && !stopping_) std::this_thread::yield();
  }

  bool drain(double seconds) {
    draining_ = true;
    const auto deadline = Clock::now() + std::chrono::duration<double>(seconds);
    while (in_flight_.load() > 0) {
      if (Clock::now() > deadline) return false;
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    return true;
  }

  AdapterSnapshot adapters() {
    return ask<AdapterSnapshot>([](EngineCore& core) { return core.adapters(); });
  }
  void load_adapter(AdapterLoad load, EngineCore::Loaded done) {
    post([load = std::move(load), done = std::move(done)](EngineCore& core) mutable {
      core.load_adapter(load, std::move(done));
    });
  }
  void unload_adapter(const std::string& name) {
    const bool known = ask<bool>([&](EngineCore& core) { return core.unload_adapter(name); });
    if (!known) fail(Code::not_found, "there is no adapter named {}", quote(name));
  }
  void preload();

  EngineStats stats() const;

  double stuck_seconds() const {
    const int64_t beat = heartbeat_.load();
    return beat == 0 ? 0 : static_cast<double>(now_ns() - beat) * 1e-9;
  }

  const LoadedModel& model() const { return *model_; }
  const Tokenizer* tokenizer() const { return tokenizer_ ? &*tokenizer_ : nullptr; }

 private:
  void check(const Request& r) const;
  void post(std::function<void(EngineCore&)> question) {
    Command command(Ask{std::move(question)});
    while (!inbox_.try_push(std::move(command))) {
      if (stopping_) throw Error(Code::unavailable, "the server is shutting down");
      std::this_thread::yield();
    }
  }
  // Waits for the answer; passes on what the question throws.
  template <class T, class F>
  T ask(F&& question) {
    std::promise<T> promise;
    auto answer = promise.get_future();
    post([&](EngineCore& core) {
      try {
        promise.set_value(question(core));
      } catch (const Error&) {
        promise.set_exception(std::current_exception());
      }
    });
    return answer.get();
  }
  void nudge() { inbox_.try_push(Nudge{}); }  // full: the engine is awake and will look anyway

  void handle(Command&& command) {
    if (auto* submit = std::get_if<Submit>(&command)) {
      core_.add(submit->id, std::move(submit->request), submit->at);
    } else if (auto* cancel = std::get_if<Cancel>(&command)) {
      core_.cancel(cancel->id);
    } else if (auto* ask = std::get_if<Ask>(&command)) {
      ask->question(core_);
    }
  }

  void run() {
    const ThreadBinding bound = model_->pool->bind_caller();
    while (true) {
      heartbeat_ = now_ns();
      while (auto command = inbox_.try_pop()) handle(std::move(*command));
      if (stopping_) break;
      if (core_.step()) continue;
      heartbeat_ = 0;
      auto command = inbox_.pop();
      if (!command) break;
      heartbeat_ = now_ns();
      handle(std::move(*command));
    }
    // The inbox is closed: what came before that is answered, and nothing can follow.
    while (auto command = inbox_.try_pop()) handle(std::move(*command));
    core_.cancel_all();
  }

  const EngineOptions options_;
  std::unique_ptr<LoadedModel> model_;
  std::optional<Tokenizer> tokenizer_;
  BoundedQueue<Command> inbox_;
  std::atomic<int32_t> in_flight_{0};
  std::atomic<RequestId> next_id_{1};
  std::atomic<int64_t> heartbeat_{0};  // steady-clock ns of the last sign of life; 0: idle
  std::atomic<bool> stopping_{false}, draining_{false};
  EngineCore core_;
  std::thread thread_;
};

// All at once; the first that fails decides.
void Engine::Impl::preload() {
  const std::vector<AdapterRef>& refs = options_.preloaded_adapters;
  std::vector<std::promise<std::optional<Error>>> results(refs.size());
  for (size_t i = 0; i < refs.size(); ++i) {
    post([&refs, &results, i](EngineCore& core) {
      core.preload(refs[i], [&results, i](const Error* error) {
        results[i].set_value(error == nullptr ? std::nullopt : std::optional(*error));
      });
    });
  }
  std::optional<Error> failed;
  for (size_t i = 0; i < refs.size(); ++i) {
    const std::optional<Error> error = results[i].get_future().get();
    if (!error || failed) continue;
    failed = Error(error->code(), fmt::format("adapter {} cannot be loaded at start: {}",
                                              quote(refs[i].label()), error->what()));
  }
  if (failed) throw *failed;
}

void Engine::Impl::check(const Request& r) const {
  const Spec& spec = model_->info.spec;
  LORRY_CHECK(r.sink != nullptr);
  if (r.prompt.empty()) throw Error(Code::invalid_argument, "`inputs` cannot be empty");
  const auto out_of_vocabulary = [&](int32_t id) {
    if (id >= 0 && id < spec.vocab) return;
    fail(Code::invalid_argument, "token id {} is out of vocabulary: expected 0 to {}", id,
         spec.vocab - 1);
  };
  for (const int32_t id : r.prompt) out_of_vocabulary(id);
  for (const int32_t id : r.stop_token_ids) out_of_vocabulary(id);
  for (const auto& [id, bias] : r.sampling.logit_bias) out_of_vocabulary(id);
  if (r.max_new_tokens < 0) throw Error(Code::invalid_argument, "`max_new_tokens` is negative");
  if (!r.stop.empty() && !tokenizer_) {
    throw Error(Code::unsupported, "this model has no tokenizer: stop texts cannot be found");
  }
  const auto total = static_cast<int64_t>(r.prompt.size()) + r.max_new_tokens;
  // A sliding window lets sequences run that are longer than the cache.
  const bool fits = core_.fits(total);
  const int64_t longest = model_->info.max_total_tokens;
  const int64_t most = fits ? longest : std::min(longest, model_->memory.kv_tokens);
  if (!fits || total > most) {
    fail(Code::too_long,
         "`inputs` tokens + `max_new_tokens` must be <= {}. Given: {} `inputs` tokens and {} "
         "`max_new_tokens`",
         most, r.prompt.size(), r.max_new_tokens);
  }
}

EngineStats Engine::Impl::stats() const {
  const EngineCounters& c = core_.counters();
  EngineStats s;
  s.running = c.running;
  s.waiting = c.waiting;
  s.waiting_for_adapter = c.waiting_for_adapter;
  s.steps = c.steps;
  s.preemptions = c.preemptions;
  s.parked = c.parked;
  s.finished = c.finished;
  s.failed = c.failed;
  s.prompt_tokens = c.prompt_tokens;
  s.generated_tokens = c.generated_tokens;
  s.prefix_queries = c.prefix_queries;
  s.prefix_hits = c.prefix_hits;
  s.kv_blocks = c.kv_blocks;
  s.kv_blocks_free = c.kv_blocks_free;
  s.step_seconds = static_cast<double>(c.step_microseconds) * 1e-6;
  s.rows_of_steps = c.rows_of_steps.read();
  s.sequences_of_steps = c.sequences_of_steps.read();
  s.milliseconds_of_steps = c.milliseconds_of_steps.read();
  s.last_batch_tokens = c.last_batch_tokens;
  s.last_batch_sequences = c.last_batch_sequences;
  s.nan_total = c.nan_total;
  s.draft_tokens = c.draft_tokens;
  s.draft_tokens_kept = c.draft_tokens_kept;
  s.adapters_device = tier_of(c.adapters_device);
  s.adapters_host = tier_of(c.adapters_host);
  s.adapter_load_failures = c.adapter_load_failures;
  return s;
}

Engine::Engine(EngineOptions options, Log& log)
    : impl_(std::make_unique<Impl>(std::move(options), log)) {
  impl_->preload();
}
Engine::~Engine() = default;
RequestId Engine::submit(Request request) { return impl_->submit(std::move(request)); }
void Engine::cancel(RequestId id) { impl_->cancel(id); }
bool Engine::drain(double seconds) { return impl_->drain(seconds); }
const ModelInfo& Engine::info() const { return impl_->model().info; }
const MemoryPlan& Engine::memory() const { return impl_->model().memory; }
const SiteTable& Engine::sites() const { return impl_->model().sites; }
const Tokenizer* Engine::tokenizer() const { return impl_->tokenizer(); }
EngineStats Engine::stats() const { return impl_->stats(); }
AdapterSnapshot Engine::adapters() const { return impl_->adapters(); }
void Engine::load_adapter(AdapterLoad load, std::function<void(const Error*)> done) {
  impl_->load_adapter(std::move(load), std::move(done));
}
void Engine::unload_adapter(const std::string& name) { impl_->unload_adapter(name); }
double Engine::stuck_seconds() const { return impl_->stuck_seconds(); }

}  // namespace lorry
