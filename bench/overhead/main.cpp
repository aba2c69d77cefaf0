// bench_overhead: what a step of the engine costs beside the operations: scheduling, building the
// batch, sampling, delivering. Both are measured on the engine thread, at the same place of a step:
// when a token of one request is delivered.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <future>
#include <memory>
#include <random>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <unistd.h>

#include "base/system.h"
#include "bench/adapters/random_adapters.h"
#include "cli/environment.h"
#include "cli/model_flags.h"
#include "engine/engine.h"
#include "ops/timed_ops.h"

namespace lorry::bench {
namespace {

constexpr int kPrompt = 64;
constexpr int kWarmUps = 8;

struct Flags {
  std::string model = "synthetic:mini-mixtral";
  std::vector<int32_t> sequences{16, 64}, adapters{0, 64};
  int32_t steps = 40, threads = 0;
};

struct Moment {
  std::chrono::steady_clock::time_point at;
  int64_t ops_ns = 0;
};

// Takes the time at its token kWarmUps, and `steps` tokens later.
class Watch final : public RequestSink {
 public:
  Watch(const OpTimes* times, int32_t steps) : times_(times), steps_(steps) {}

  void on_token(const TokenEvent&) override {
    ++tokens_;
    if (times_ == nullptr) return;
    if (tokens_ == kWarmUps) first_ = now();
    if (tokens_ == kWarmUps + steps_) last_ = now();
  }
  void on_finish(const FinishEvent& event) override {
    if (event.error) {
      done_.set_exception(std::make_exception_ptr(*event.error));
    } else {
      done_.set_value();
    }
  }
  std::future<void> done() { return done_.get_future(); }

  double step_ms() const {
    return std::chrono::duration<double, std::milli>(last_.at - first_.at).count() / steps_;
  }
  double ops_ms() const {
    return static_cast<double>(last_.ops_ns - first_.ops_ns) * 1e-6 / steps_;
  }

 private:
  Moment now() const { return {std::chrono::steady_clock::now(), times_->total()}; }

  const OpTimes* times_;
  const int32_t steps_;
  int32_t tokens_ = 0;
  Moment first_, last_;
  std::promise<void> done_;
};

Request request_of(int32_t i, int32_t adapters, int32_t steps, int32_t vocab) {
  Request r;
  std::mt19937 random(static_cast<uint32_t>(i));
  for (int k = 0; k < kPrompt; ++k) {
    r.prompt.push_back(static_cast<int32_t>(random() % static_cast<uint32_t>(vocab)));
  }
  if (adapters > 0) r.adapter = fmt::format("a{}", i % adapters);
  r.max_new_tokens = steps + 4 * kWarmUps;
  r.ignore_eos = true;
  return r;
}

void run(Engine& engine, const OpTimes& times, int32_t sequences, int32_t adapters, int32_t steps) {
  std::vector<std::future<void>> done;
  std::shared_ptr<Watch> watch;
  for (int32_t i = 0; i < sequences; ++i) {
    Request r = request_of(i, adapters, steps, engine.info().spec.vocab);
    // The last one to come: all others run when it does.
    const bool last = i + 1 == sequences;
    watch = std::make_shared<Watch>(last ? &times : nullptr, steps);
    done.push_back(watch->done());
    r.sink = watch;
    engine.submit(std::move(r));
  }
  for (auto& d : done) d.get();
  const double step = watch->step_ms();
  const double rest = step - watch->ops_ms();
  fmt::print("{:9} {:9} {:12.2f} {:14.3f} {:9.2f}%\n", sequences, adapters, step, rest,
             100 * rest / step);
  std::fflush(stdout);
}

int main_of(const Flags& f) {
  Log log({.level = LogLevel::warn});
  const std::string root = temporary_folder() + fmt::format("/lorry-overhead-{}", getpid());
  const int32_t most = *std::max_element(f.sequences.begin(), f.sequences.end());
  const int32_t adapters = *std::max_element(f.adapters.begin(), f.adapters.end());
  OpTimes times;
  EngineOptions o;
  o.model = find_model(f.model).folder;
  o.threads = f.threads;
  o.op_times = &times;
  o.max_sequences = most;
  o.kv_tokens = int64_t{most} * 256;
  o.adapter_root = root;
  o.adapter_memory = int64_t{1} << 30;
  std::filesystem::create_directories(root);
  {
    Engine engine(o, log);
    for (int32_t i = 0; i < adapters; ++i) {
      write_adapter(fmt::format("{}/a{}", root, i), engine.sites(),
                    {16, RandomAdapter::Linears::qv}, static_cast<uint64_t>(i));
    }
    fmt::print("{}, {} threads, {}\n", f.model, engine.info().threads, cpu_name());
    fmt::print("{:>9} {:>9} {:>12} {:>14} {:>10}\n", "sequences", "adapters", "step ms",
               "beside ops ms", "share");
    for (const int32_t a : f.adapters) {
      for (const int32_t s : f.sequences) run(engine, times, s, a, f.steps);
    }
  }
  std::filesystem::remove_all(root);
  return 0;
}

}  // namespace
}  // namespace lorry::bench

int main(int argc, char** argv) {
  lorry::bench::Flags f;
  CLI::App app("What a step of the engine costs beside the operations");
  app.add_option("model", f.model, "Folder, demo or synthetic:mini-mixtral")->capture_default_str();
  app.add_option("--sequences", f.sequences, "Decoding at once; several allowed")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option("--adapters", f.adapters, "Distinct ones of q and v, rank 16; several allowed")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  app.add_option("--steps", f.steps, "Measured")->check(CLI::Range(1, 200))->capture_default_str();
  app.add_option("--threads", f.threads, "Compute threads (default: physical cores)");
  CLI11_PARSE(app, argc, argv);
  try {
    return lorry::bench::main_of(f);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "bench_overhead: %s\n", e.what());
    return 1;
  }
}
