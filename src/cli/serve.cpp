// `lorry serve`.
#include <condition_variable>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include <CLI/CLI.hpp>
#include <boost/json/object.hpp>
#include <boost/json/serialize.hpp>
#include <fmt/format.h>

#include "base/json.h"
#include "cli/commands.h"
#include "cli/ranks.h"
#include "cli/serve_flags.h"
#include "cli/settings.h"
#include "cli/signals.h"
#include "cli/values.h"
#include "serve/engine_backend.h"
#include "serve/server.h"

namespace lorry {

namespace {

constexpr const char* kDemoPrompt =
    "Tell a story about Mia, a red fox who finds a key in the forest.";

// The first signal while serving asks for the end; one before that, or a second, is obeyed at once.
class Stop {
 public:
  explicit Stop(DemoFiles* demo) : demo_(demo), signals_([this] { signalled(); }) {}

  // Waits for the first signal.
  void wait() {
    std::unique_lock lock(mutex_);
    serving_ = true;
    changed_.wait(lock, [&] { return asked_; });
  }

 private:
  void signalled() {
    {
      const std::lock_guard lock(mutex_);
      if (serving_ && !asked_) {
        asked_ = true;
        changed_.notify_one();
        return;
      }
    }
    if (demo_ != nullptr) demo_->remove();
    std::_Exit(0);
  }

  DemoFiles* demo_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool serving_ = false;
  bool asked_ = false;
  Signals signals_;  // the last member: its thread uses the others
};

// A request for the shell; with an adapter where there is one.
std::string what_to_type(const std::string& url, const EngineOptions& options,
                         const ModelPlace& place) {
  json::object parameters;
  parameters["max_new_tokens"] = 64;
  if (!options.adapters.empty()) parameters["adapter_id"] = options.adapters.back().first;
  if (place.demo) parameters["apply_chat_template"] = true;
  const json::object body{{"inputs", place.demo ? kDemoPrompt : "Hello"},
                          {"parameters", std::move(parameters)}};
  return fmt::format("curl {}/generate -H 'Content-Type: application/json' -d '{}'", url,
                     json::serialize(body));
}

// Until a signal asks for the end.
void serve(const ServeFlags& flags, const ModelPlace& place, const EngineOptions& options, Log& log,
           Stop& stop) {
  Engine engine(options, log);
  EngineBackend backend(engine);
  Server server(server_options(flags, place), backend, log);
  server.start();
  const std::string host =
      flags.host.find(':') == std::string::npos ? flags.host : "[" + flags.host + "]";
  const std::string url = fmt::format("http://{}:{}", host, server.port());
  log.info("serving {} with {} adapters on {}", place.name, options.adapters.size(), url);
  if (!server.on_loopback()) {
    log.warn("everyone who reaches {} can use this server: it asks for no key", url);
  }
  // Not fmt::print, which throws where standard error is closed.
  std::fputs(("Try: " + what_to_type(url, options, place) + "\n").c_str(), stderr);
  stop.wait();
  log.info("shutting down: running requests have {} s", flags.shutdown_timeout_s);
  server.shutdown(flags.shutdown_timeout_s);
}

int run(CLI::App& app, ServeFlags& flags) {
  apply_settings(app, flags.config);
  std::signal(SIGPIPE, SIG_IGN);
  Log log({.level = parse_log_level(flags.log_level), .json = flags.json_output});
  const ModelPlace place = find_model(flags.model.model);
  EngineOptions options = engine_options(flags, place);

  std::optional<Stop> stop;
  if (!Ranks::is_follower(flags.ranks)) stop.emplace(place.demo.get());
  Ranks ranks(flags.ranks, [&place] {
    if (place.demo) place.demo->remove();
  });
  ranks.set(options);
  if (!ranks.leads()) return ranks.follow(options);
  serve(flags, place, options, log, *stop);
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
