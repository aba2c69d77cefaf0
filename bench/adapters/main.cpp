// bench_adapters: what it costs to serve more adapters than fit, all of it on one engine at a time.
//
//   many   requests over --adapters adapters, Zipf(1.0), in memory that holds --fit of them,
//   against
//          the same requests over --few: throughput, waiting, memory; every text is compared with
//          what the adapter says alone
//   active every client its own adapter, --factor times more than fit, against all fitting: TTFT
//   bad    adapters that cannot be loaded are asked for while others are served: failures, steps
//
// Prints a table; --out writes everything as JSON, which plot.py draws.
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <random>
#include <thread>

#include <CLI/CLI.hpp>
#include <boost/json/serialize.hpp>
#include <fmt/format.h>
#include <unistd.h>

#include "base/json.h"
#include "base/system.h"
#include "bench/adapters/load.h"
#include "bench/adapters/random_adapters.h"
#include "cli/environment.h"
#include "cli/model_flags.h"
#include "engine/engine.h"

namespace lorry::bench {
namespace {

struct Flags {
  std::string model = "demo", out, linears = "qv";
  std::vector<std::string> only;
  int64_t adapters = 2000, fit = 50, few = 5, factor = 4, bad = 25;
  int64_t requests = 2000;  // of a round of `many`
  int32_t concurrency = 32, tokens = 32, rounds = 5, threads = 0;
  int64_t host_memory = 0;
  double cycle_time = 0.1, seconds = 10;
};

std::string name_of(int64_t i) { return fmt::format("a{:05}", i); }

size_t resident_bytes() {
  std::ifstream file("/proc/self/statm");
  size_t pages = 0;
  file >> pages >> pages;
  return pages * static_cast<size_t>(sysconf(_SC_PAGESIZE));
}

json::object quantiles(const std::vector<double>& values, double scale) {
  json::object o;
  for (const auto& [name, q] : {std::pair{"p50", 0.5}, {"p90", 0.9}, {"p99", 0.99}, {"max", 1.0}}) {
    o[name] = scale * quantile(values, q);
  }
  return o;
}

json::array list_of(const std::vector<double>& values) {
  return json::array(values.begin(), values.end());
}

// The 0th to the 100th.
json::array percentiles(const std::vector<double>& values, double scale) {
  json::array list;
  for (int p = 0; p <= 100; ++p) list.push_back(scale * quantile(values, p / 100.0));
  return list;
}

class Bench {
 public:
  explicit Bench(const Flags& flags)
      : flags_(flags),
        log_({.level = LogLevel::warn}),
        place_(find_model(flags.model)),
        root_(temporary_folder() + fmt::format("/lorry-bench-{}", getpid())) {}
  ~Bench() { std::filesystem::remove_all(root_); }

  int run() {
    make_adapters();
    const auto wanted = [&](const char* name) {
      return flags_.only.empty() ||
             std::find(flags_.only.begin(), flags_.only.end(), name) != flags_.only.end();
    };
    if (wanted("many")) many();
    if (wanted("active")) active();
    if (wanted("bad")) bad();
    if (!flags_.out.empty()) std::ofstream(flags_.out) << json::serialize(report_) << "\n";
    return failed_ ? 1 : 0;
  }

 private:
  EngineOptions options(int64_t adapter_memory, int64_t host_memory) const {
    EngineOptions o;
    o.model = place_.folder;
    o.threads = flags_.threads;
    o.kv_tokens = 64 * 256;
    o.adapter_root = root_;
    o.adapter_memory = adapter_memory;
    o.adapter_host_memory = host_memory;
    o.adapter_cycle_seconds = flags_.cycle_time;
    return o;
  }

  // All of them are on disk before anything is measured.
  void make_adapters() {
    {
      Engine engine(options(1 << 20, 0), log_);
      sites_ = engine.sites();
    }
    for (int64_t i = 0; i < flags_.adapters; ++i) {
      bytes_.push_back(write_adapter(root_ + "/" + name_of(i), sites_, {rank_of(i), linears()},
                                     static_cast<uint64_t>(i)));
    }
    int64_t sum = 0;
    for (const int64_t b : bytes_) sum += b;
    mean_bytes_ = sum / flags_.adapters;
    largest_bytes_ = *std::max_element(bytes_.begin(), bytes_.end());
    fmt::print("{} adapters of {} linears, ranks 4 to 64, {} each on average, {} in all\n",
               flags_.adapters, flags_.linears, format_bytes(static_cast<size_t>(mean_bytes_)),
               format_bytes(static_cast<size_t>(sum)));
    report_["adapters"] = flags_.adapters;
    report_["linears"] = flags_.linears;
    report_["mean_bytes"] = mean_bytes_;
    report_["cpu"] = cpu_name();
  }

  // At least for three of the largest.
  int64_t room_for(int64_t n) const { return std::max(n * mean_bytes_, 3 * largest_bytes_); }
  RandomAdapter::Linears linears() const {
    using Linears = RandomAdapter::Linears;
    return flags_.linears == "qv"          ? Linears::qv
           : flags_.linears == "attention" ? Linears::attention
                                           : Linears::all;
  }
  int64_t room_for_all() const { return 2 * room_for(flags_.adapters) + (int64_t{64} << 20); }

  Request request(int64_t adapter, uint64_t salt) const {
    Request r;
    r.adapter = name_of(adapter);
    std::mt19937_64 random(salt);
    for (int i = 0; i < 24; ++i) {
      r.prompt.push_back(static_cast<int32_t>(random() % static_cast<uint64_t>(vocab_)));
    }
    return r;
  }

  Load zipf_load(int64_t adapters, int64_t requests, uint64_t seed) {
    auto zipf = std::make_shared<Zipf>(adapters, 1.0, seed);
    auto left = std::make_shared<int64_t>(requests);
    Load load{.concurrency = flags_.concurrency, .tokens = flags_.tokens};
    load.next = [this, zipf, left, seed]() -> std::optional<Request> {
      if (*left == 0) return std::nullopt;
      --*left;
      return request(zipf->next(), seed * 1000003 + static_cast<uint64_t>(*left));
    };
    return load;
  }

  void count_failures(const LoadResult& result, const char* where) {
    for (const Served& s : result.requests) {
      if (!s.error) continue;
      fmt::print("{}: {} failed: {}\n", where, s.adapter, s.error->what());
      failed_ = true;
      return;
    }
  }

  void many() {
    Engine engine(options(room_for(flags_.fit), flags_.host_memory), log_);
    vocab_ = engine.info().spec.vocab;
    const size_t before = resident_bytes();
    std::vector<double> ratios, few_speed, many_speed, waits;
    std::vector<Served> sample;
    // One round of each is not counted.
    run_load(engine, zipf_load(flags_.few, flags_.requests, 99));
    run_load(engine, zipf_load(flags_.adapters, flags_.requests, 99));
    for (int32_t round = 0; round < flags_.rounds; ++round) {
      const auto seed = static_cast<uint64_t>(round);
      const LoadResult few = run_load(engine, zipf_load(flags_.few, flags_.requests, seed));
      const LoadResult all = run_load(engine, zipf_load(flags_.adapters, flags_.requests, seed));
      count_failures(few, "few");
      count_failures(all, "many");
      few_speed.push_back(few.tokens_per_s());
      many_speed.push_back(all.tokens_per_s());
      ratios.push_back(all.tokens_per_s() / few.tokens_per_s());
      for (const Served& s : all.requests) waits.push_back(s.ttft);
      for (const Served& s : all.requests) {
        if (!s.tokens.empty()) sample.push_back(s);
      }
    }
    // What is planned is reserved at start and becomes resident with its first use.
    const size_t resident = resident_bytes() - before;
    const MemoryPlan& plan = engine.memory();
    const size_t planned = plan.kv_cache + plan.adapters + plan.adapters_host + plan.scratch;
    const int64_t wrong = compare_with_alone(sample);
    failed_ = failed_ || wrong > 0;
    fmt::print(
        "many    {} adapters, room for {}: {:.0f} tok/s; {} adapters: {:.0f} tok/s; ratio {:.3f} "
        "(min {:.3f}, max {:.3f})\n        TTFT p50 {:.1f} ms, p99 {:.1f} ms, longest {:.1f} ms; "
        "memory grew by {} of {} planned\n        {} texts compared with the adapter alone: {} "
        "differ\n",
        flags_.adapters, flags_.fit, quantile(many_speed, 0.5), flags_.few,
        quantile(few_speed, 0.5), quantile(ratios, 0.5), quantile(ratios, 0), quantile(ratios, 1),
        1e3 * quantile(waits, 0.5), 1e3 * quantile(waits, 0.99), 1e3 * quantile(waits, 1),
        format_bytes(resident), format_bytes(planned), sample.size(), wrong);
    const Residency::Counts memory = engine.adapters().memory;
    fmt::print("        loads {}, evictions {}, waits {}, rotations {}, parked {}\n",
               memory.device.fills, memory.device.evictions, memory.waits, memory.rotations,
               engine.stats().parked);
    report_["many"] = json::object{{"tokens_per_s", quantile(many_speed, 0.5)},
                                   {"few_tokens_per_s", quantile(few_speed, 0.5)},
                                   {"ratio", quantile(ratios, 0.5)},
                                   {"ratios", list_of(ratios)},
                                   {"ttft_ms", quantiles(waits, 1e3)},
                                   {"ttft_ms_percentiles", percentiles(waits, 1e3)},
                                   {"resident_bytes", resident},
                                   {"planned_bytes", planned},
                                   {"compared", sample.size()},
                                   {"wrong", wrong}};
  }

  // Each request again, by itself, on an engine that has room for everything.
  int64_t compare_with_alone(const std::vector<Served>& sample) {
    Engine engine(options(room_for_all(), 0), log_);
    int64_t wrong = 0;
    for (const Served& s : sample) {
      bool asked = false;
      Load load{.concurrency = 1, .tokens = flags_.tokens};
      load.next = [&]() -> std::optional<Request> {
        if (std::exchange(asked, true)) return std::nullopt;
        Request r;
        r.adapter = s.adapter;
        r.prompt = s.prompt;
        return r;
      };
      wrong += run_load(engine, load).requests.front().tokens != s.tokens;
    }
    return wrong;
  }

  void active() {
    const auto clients = static_cast<int32_t>(flags_.fit / flags_.factor * flags_.factor);
    const int64_t fit = clients / flags_.factor;
    Engine all(options(room_for_all(), 0), log_);
    Engine some(options(room_for(fit), flags_.host_memory), log_);
    vocab_ = all.info().spec.vocab;
    std::vector<double> ratios, fits_ms, some_ms;
    LoadResult last;
    for (int32_t round = 0; round < flags_.rounds + 1; ++round) {
      const auto ttft = [&](Engine& engine) {
        auto left = std::make_shared<int64_t>(clients * 8);
        Load load{.concurrency = clients, .tokens = flags_.tokens};
        load.next = [&, left]() -> std::optional<Request> {
          if (*left == 0) return std::nullopt;
          --*left;
          return request(*left % clients, static_cast<uint64_t>(round * 100000 + *left));
        };
        last = run_load(engine, load);
        count_failures(last, "active");
        std::vector<double> times;
        for (const Served& s : last.requests) times.push_back(s.ttft);
        return 1e3 * quantile(times, 0.5);
      };
      const double fits = ttft(all);
      const double tight = ttft(some);
      if (round == 0) continue;  // everything is read from disk
      fits_ms.push_back(fits);
      some_ms.push_back(tight);
      ratios.push_back(tight / fits);
    }
    fmt::print(
        "active  {} clients with an adapter each, room for {}: TTFT p50 {:.1f} ms; for all: "
        "{:.1f} ms; ratio {:.2f} (min {:.2f}, max {:.2f})\n",
        clients, fit, quantile(some_ms, 0.5), quantile(fits_ms, 0.5), quantile(ratios, 0.5),
        quantile(ratios, 0), quantile(ratios, 1));
    report_["active"] = json::object{{"clients", clients},
                                     {"fit", fit},
                                     {"ttft_ms", quantile(some_ms, 0.5)},
                                     {"ttft_all_fit_ms", quantile(fits_ms, 0.5)},
                                     {"ratio", quantile(ratios, 0.5)},
                                     {"ratios", list_of(ratios)}};
  }

  void bad() {
    for (int64_t i = 0; i < flags_.bad; ++i) {
      write_bad_adapter(root_ + fmt::format("/bad{:03}", i), sites_, i);
    }
    Engine engine(options(room_for(flags_.fit), 0), log_);
    vocab_ = engine.info().spec.vocab;
    run_load(engine, zipf_load(flags_.few, flags_.few * 4, 99));
    json::array rounds;
    for (const bool with_bad : {false, true}) {
      std::atomic<bool> all_asked{!with_bad};
      std::atomic<int64_t> refused{0};
      std::thread culprit([&] {
        if (with_bad) ask_for_bad(engine, refused);
        all_asked = true;
      });
      const auto end = std::chrono::steady_clock::now() +
                       std::chrono::milliseconds(static_cast<int64_t>(flags_.seconds * 1e3));
      Load load = zipf_load(flags_.few, int64_t{1} << 40, 7);
      load.next = [&, inner = load.next]() -> std::optional<Request> {
        const bool go_on = std::chrono::steady_clock::now() < end || !all_asked;
        return go_on ? inner() : std::nullopt;
      };
      const LoadResult result = run_load(engine, load);
      culprit.join();
      count_failures(result, "bad");
      const double median = quantile(result.intervals, 0.5);
      fmt::print(
          "bad     {} of {} bad adapters refused: {} good requests, {:.0f} tok/s, token "
          "interval p50 {:.2f} ms, p99 {:.2f}, p99.9 {:.2f}, longest {:.2f} ({:.1f} medians)\n",
          refused.load(), with_bad ? flags_.bad : 0, result.requests.size(), result.tokens_per_s(),
          1e3 * median, 1e3 * quantile(result.intervals, 0.99),
          1e3 * quantile(result.intervals, 0.999), 1e3 * quantile(result.intervals, 1),
          quantile(result.intervals, 1) / median);
      failed_ = failed_ || refused != (with_bad ? flags_.bad : 0);
      rounds.push_back(json::object{{"bad", refused.load()},
                                    {"requests", result.requests.size()},
                                    {"tokens_per_s", result.tokens_per_s()},
                                    {"interval_ms", quantiles(result.intervals, 1e3)}});
    }
    report_["bad"] = std::move(rounds);
  }

  // Spreads its requests over most of the time; a slow machine takes longer.
  void ask_for_bad(Engine& engine, std::atomic<int64_t>& refused) const {
    const auto pause = std::chrono::duration<double>(
        0.8 * flags_.seconds / static_cast<double>(std::max<int64_t>(flags_.bad, 1)));
    for (int64_t i = 0; i < flags_.bad; ++i) {
      bool asked = false;
      Load load{.concurrency = 1, .tokens = 4};
      load.next = [&]() -> std::optional<Request> {
        if (std::exchange(asked, true)) return std::nullopt;
        Request r;
        r.adapter = fmt::format("bad{:03}", i);
        r.prompt = {1, 2, 3};
        return r;
      };
      refused += run_load(engine, load).requests.front().error.has_value();
      std::this_thread::sleep_for(pause);
    }
  }

  const Flags flags_;
  Log log_;
  const ModelPlace place_;
  const std::string root_;
  SiteTable sites_;
  std::vector<int64_t> bytes_;
  int64_t mean_bytes_ = 0, largest_bytes_ = 0;
  int32_t vocab_ = 1;
  json::object report_;
  bool failed_ = false;
};

}  // namespace
}  // namespace lorry::bench

int main(int argc, char** argv) {
  lorry::bench::Flags f;
  CLI::App app("Serves more adapters than fit, and measures what that costs");
  app.add_option("model", f.model, "Folder of a Mixtral, or 'demo' (default)");
  app.add_option("--adapters", f.adapters, "Adapters on disk (default: 2000)");
  app.add_option("--fit", f.fit, "As many have room (default: 50)");
  app.add_option("--few", f.few, "The comparison has so many (default: 5)");
  app.add_option("--factor", f.factor, "active: adapters per room for one (default: 4)");
  app.add_option("--bad", f.bad, "bad: adapters that cannot be loaded (default: 25)");
  app.add_option("--requests", f.requests, "Requests of a round (default: 2000)");
  app.add_option("--concurrency", f.concurrency, "Requests at a time (default: 32)");
  app.add_option("--tokens", f.tokens, "Tokens of an answer (default: 32)");
  app.add_option("--rounds", f.rounds, "Rounds, whose median counts (default: 5)");
  app.add_option("--threads", f.threads, "Compute threads (default: physical cores)");
  app.add_option("--linears", f.linears, "What they adapt: qv (default), attention or all")
      ->check(CLI::IsMember({"qv", "attention", "all"}));
  app.add_option("--host-memory", f.host_memory, "Bytes of the host tier (default: 0)");
  app.add_option("--cycle-time", f.cycle_time, "Seconds of an adapter's turn (default: 0.1)");
  app.add_option("--seconds", f.seconds, "bad: of each part (default: 10)");
  app.add_option("--only", f.only, "many, active, bad (default: all)");
  app.add_option("--out", f.out, "JSON file");
  CLI11_PARSE(app, argc, argv);
  try {
    return lorry::bench::Bench(f).run();
  } catch (const std::exception& e) {
    std::fprintf(stderr, "bench_adapters: %s\n", e.what());
    return 1;
  }
}
