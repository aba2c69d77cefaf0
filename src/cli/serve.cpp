// `lorry serve`.
#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <sstream>
#include <string>

#include <CLI/CLI.hpp>
#include <boost/json/object.hpp>
#include <boost/json/serialize.hpp>
#include <fmt/format.h>

#include "base/error.h"
#include "base/json.h"
#include "base/system.h"
#include "cli/commands.h"
#include "cli/compat_flags.h"
#include "cli/environment.h"
#include "cli/preview.h"
#include "cli/progress_line.h"
#include "cli/ranks.h"
#include "cli/report.h"
#include "cli/serve_flags.h"
#include "cli/settings.h"
#include "cli/signals.h"
#include "cli/values.h"
#include "fetch/post.h"
#include "serve/engine_backend.h"
#include "serve/server.h"
#include "serve/tracing.h"

namespace lorry {

namespace {

constexpr const char* kDemoPrompt =
    "Tell a story about Mia, a red fox who finds a key in the forest.";

// The first signal while serving asks for the end; one before that, or a second, is obeyed at once.
class Stop {
 public:
  explicit Stop(DemoFiles* demo) : demo_(demo), signals_([this] { signalled(); }) {}

  // What a process that ends at once does last; none: nothing.
  void set_leaving(std::function<void()> leaving) {
    const std::lock_guard lock(mutex_);
    leaving_ = std::move(leaving);
  }

  // Waits for the first signal. False: `alive`, which is asked every `pause`, said no before.
  bool wait(std::chrono::duration<double> pause, const std::function<bool()>& alive) {
    std::unique_lock lock(mutex_);
    serving_ = true;
    while (!changed_.wait_for(lock, pause, [&] { return asked_; })) {
      if (!alive()) return false;
    }
    return true;
  }

 private:
  void signalled() {
    const std::lock_guard lock(mutex_);
    if (serving_ && !asked_) {
      asked_ = true;
      changed_.notify_one();
      return;
    }
    if (leaving_) leaving_();
    if (demo_ != nullptr) demo_->remove();
    std::_Exit(0);
  }

  DemoFiles* demo_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::function<void()> leaving_;
  bool serving_ = false;
  bool asked_ = false;
  Signals signals_;  // the last member: its thread uses the others
};

// What Stop does on leaving, for as long as this lives.
class Leaving {
 public:
  Leaving(Stop& stop, std::function<void()> leaving) : stop_(stop) {
    stop_.set_leaving(std::move(leaving));
  }
  ~Leaving() { stop_.set_leaving({}); }
  Leaving(const Leaving&) = delete;
  Leaving& operator=(const Leaving&) = delete;

 private:
  Stop& stop_;
};

// Large requests leave the heaps in pieces: now and then what lies free in them is given back.
class HeapCare {
 public:
  void look() {
    const auto now = std::chrono::steady_clock::now();
    if (now - last_ < std::chrono::seconds(10)) return;
    trim_heap();
    last_ = now;
  }

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

// Stops the server before what it uses goes.
class Shutdown {
 public:
  explicit Shutdown(Server& server) : server_(server) {}
  ~Shutdown() { server_.shutdown(0); }
  Shutdown(const Shutdown&) = delete;
  Shutdown& operator=(const Shutdown&) = delete;

 private:
  Server& server_;
};

// Where the server is, for people: a URL, or the socket's path.
std::string url_of(const ServerOptions& options, const Server& server) {
  const char* scheme = options.http.ssl_certfile.empty() ? "http" : "https";
  if (!options.http.uds.empty()) return fmt::format("{}://localhost", scheme);
  const std::string& host = options.http.host;
  return fmt::format("{}://{}:{}", scheme,
                     host.find(':') == std::string::npos ? host : "[" + host + "]", server.port());
}

// A request for the shell; with an adapter where there is one.
std::string what_to_type(const std::string& url, const ServerOptions& server,
                         const EngineOptions& options, const ModelPlace& place) {
  json::object parameters;
  parameters["max_new_tokens"] = 64;
  if (!options.adapters.empty()) parameters["adapter_id"] = options.adapters.back().first;
  if (place.demo) parameters["apply_chat_template"] = true;
  const json::object body{{"inputs", place.demo ? kDemoPrompt : "Hello"},
                          {"parameters", std::move(parameters)}};
  std::string more;
  if (!server.http.uds.empty()) more += fmt::format(" --unix-socket {}", server.http.uds);
  if (!server.keys.empty()) more += " -H \"Authorization: Bearer $KEY\"";
  return fmt::format("curl{} {}/generate -H 'Content-Type: application/json' -d '{}'", more, url,
                     json::serialize(body));
}

// Who can use the server, where that may surprise.
void tell_access(const ServerOptions& options, const Server& server, const std::string& url,
                 Log& log) {
  if (options.keys.empty()) {
    if (server.on_loopback()) return;
    log.warn(
        "WARNING: everyone who reaches {} can use this server and load adapters into it: it "
        "asks for no key. --api-key-file gives it some",
        url);
    return;
  }
  const auto n_admins = std::count_if(options.keys.begin(), options.keys.end(),
                                      [](const ApiKey& key) { return key.admin; });
  log.info("{} API keys, {} of them of administrators{}", options.keys.size(), n_admins,
           n_admins == 0 ? ": nobody can load or unload adapters" : "");
}

// Null without an endpoint.
std::unique_ptr<Tracing> make_tracing(std::string endpoint) {
  if (endpoint.empty()) return nullptr;
  while (endpoint.ends_with('/')) endpoint.pop_back();
  if (!endpoint.ends_with("/v1/traces")) endpoint += "/v1/traces";
  auto poster = std::make_shared<JsonPoster>(endpoint);
  return std::make_unique<Tracing>(
      [poster](const std::string& body) { return poster->post(body); });
}

// A bar has no place in a log of JSON.
ProgressLine::Where progress_of(const ServeFlags& flags) {
  if (flags.json_output && !flags.model.download.no_progress) return ProgressLine::Where::lines;
  return progress_place(!flags.model.download.no_progress);
}

// --report: what would fit, without loading the weights.
int report(const std::string& form, const EngineOptions& options) {
  const Preview p = preview_model(options);
  if (!p.memory) fail(Code::over_capacity, "{}", p.does_not_fit);
  const FitReport fits = fit_report(options, p.spec, p.sites, *p.parts.ops, *p.memory);
  fmt::print("{}\n", form == "json" ? json::serialize(fits.to_json()) : fits.to_text());
  return 0;
}

// The same for the log, once the model is there.
void tell_fits(EngineOptions options, const Engine& engine, Log& log) {
  if (engine.info().numa_nodes == 1) options.topology.clear();
  ThreadPool pool(1);
  const auto ops = make_cpu_ops(options.dtype, pool);
  const FitReport fits =
      fit_report(options, engine.info().spec, engine.sites(), *ops, engine.memory());
  std::istringstream lines(fits.to_text());
  for (std::string line; std::getline(lines, line);) log.info("fits: {}", line);
}

// Until a signal asks for the end.
void serve(const CLI::App& app, const ServeFlags& flags, const ModelPlace& place,
           EngineOptions options, Stop& stop) {
  Log log({.level = parse_log_level(flags.log_level),
           .json = flags.json_output,
           .colour = may_colour()});
  ServerOptions server_of = server_options(flags, place);
  tell_compat_flags(app, log);
  const auto tracing = make_tracing(flags.otlp_endpoint);
  server_of.tracing = tracing.get();
  Server server(server_of, log);
  server.start();
  ProgressLine line(progress_of(flags), [&](const std::string& text) { log.info("{}", text); });
  options.progress = line.sink();
  std::optional<Leaving> leaving(std::in_place, stop, [&] { line.end(); });
  Engine engine(options, log);
  leaving.reset();
  line.end();
  EngineBackend backend(engine);
  tell_fits(options, engine, log);
  const Shutdown at_end(server);
  server.serve(backend);
  const std::string url = url_of(server_of, server);
  log.info("serving {} with {} adapters on {}{}", place.name, options.adapters.size(), url,
           server_of.http.uds.empty() ? "" : ", socket " + server_of.http.uds);
  tell_access(server_of, server, url, log);
  // Not fmt::print, which throws where standard error is closed.
  std::fputs(("Try: " + what_to_type(url, server_of, options, place) + "\n").c_str(), stderr);
  const double limit = flags.watchdog_timeout_s > 0 ? flags.watchdog_timeout_s : 1e9;
  HeapCare heap;
  if (!stop.wait(std::chrono::duration<double>(std::min(limit / 2, 1.0)), [&] {
        heap.look();
        return engine.stuck_seconds() < limit;
      })) {
    log.error("a step of the model has taken longer than --watchdog-timeout, {} s: giving up",
              limit);
    std::_Exit(3);  // nothing can be waited for; a supervisor starts another process
  }
  log.info("shutting down: running requests have {} s", flags.shutdown_timeout_s);
  server.shutdown(flags.shutdown_timeout_s);
}

int run(CLI::App& app, ServeFlags& flags) {
  apply_settings(app, flags.config);
  std::signal(SIGPIPE, SIG_IGN);
  keep_heap_small();
  raise_file_limit();
  flags.model.download.silent = Ranks::is_follower(flags.ranks);
  const ModelPlace place = find_model(flags.model.model, flags.model.download);
  EngineOptions options = engine_options(flags, place);
  if (!flags.report.empty()) return report(flags.report, options);

  std::optional<Stop> stop;
  if (!Ranks::is_follower(flags.ranks)) stop.emplace(place.demo.get());
  Ranks ranks(flags.ranks, [&place] {
    if (place.demo) place.demo->remove();
  });
  ranks.set(options);
  if (!ranks.leads()) return ranks.follow(options);
  serve(app, flags, place, options, *stop);
  ranks.finish();
  return 0;
}

}  // namespace

Command add_serve(CLI::App& lorry) {
  const auto flags = std::make_shared<ServeFlags>();
  CLI::App& app = *lorry.add_subcommand("serve", "Serve a model and its adapters over HTTP");
  add_serve_flags(app, *flags);
  app.footer(
      "Every flag is also an environment variable (MAX_NUM_SEQS=128) and a key of the --config "
      "file.\n"
      "What the command line says counts first, then the environment, then the file.\n"
      "Examples\n"
      "  lorry serve\n"
      "  lorry serve /models/mixtral --lora-modules sql=/adapters/sql law=/adapters/law\n"
      "  lorry serve /models/mixtral --adapter-root /adapters --host 0.0.0.0 --port 8080");
  return {&app, [flags, &app] { return run(app, *flags); }};
}

}  // namespace lorry
