#include "cli/serve_flags.h"

#include <algorithm>
#include <limits>

#include <CLI/CLI.hpp>

#include "base/error.h"
#include "base/files.h"
#include "base/json.h"
#include "cli/compat_flags.h"
#include "cli/progress_line.h"
#include "cli/values.h"

namespace lorry {

namespace {

constexpr int64_t kMaxInt = std::numeric_limits<int32_t>::max();
constexpr int32_t kBatchTokens = 512;
constexpr int32_t kLogitRows = 128;
constexpr size_t kMaxExamples = 16384;  // bytes

void add_network(CLI::App& app, ServeFlags& f) {
  const char* group = "Network";
  app.add_option("--host,--hostname", f.host,
                 "Address to listen on (default: 127.0.0.1, this machine alone)")
      ->group(group)
      ->type_name("ADDRESS");
  accept_units(
      app.add_option("--port", f.port, "Port (default: 3000; 0: one that is free)")->group(group),
      0, 65535);
  app.add_option("--served-model-name", f.served_name,
                 "Name of the base model on /v1 (default: the MODEL)")
      ->group(group)
      ->type_name("NAME");
}

void add_limits(CLI::App& app, ServeFlags& f) {
  const char* group = "Limits of a request";
  const auto count = [&](const char* name, auto& value, const char* help, int64_t min) {
    accept_units(app.add_option(name, value, help)->group(group), min, kMaxInt);
  };
  count("--max-total-tokens,--max-model-len", f.max_total_tokens,
        "Tokens of prompt and answer together (default: what the model admits)", 1);
  count("--max-input-length", f.max_input_length,
        "Tokens of the prompt (default: one less than that)", 1);
  count("--max-best-of", f.max_best_of, "Answers to one request, best_of and n (default: 2)", 1);
  count("--max-stop-sequences", f.max_stop_sequences, "Stop sequences (default: 4)", 0);
  const char* server = "Limits of the server";
  group = server;
  count("--max-concurrent-requests", f.max_requests,
        "Requests in work or waiting; more are refused (default: 1024)", 1);
  accept_range(app.add_option("--max-queue-seconds", f.max_queue_seconds,
                              "Seconds that a request may wait for its first step; then it is "
                              "answered with 504 (default: 0, no limit)")
                   ->group(group),
               0.0, 1e6);
  count("--max-num-seqs", f.max_sequences, "Requests in one step (default: 64)", 1);
  count("--max-batch-prefill-tokens,--max-num-batched-tokens", f.max_batch_tokens,
        "Tokens in one step (default: 512)", 1);
  accept_range(app.add_option("--validation-workers", f.validation_workers,
                              "Threads that read and tokenise requests (default: 2)")
                   ->group(group),
               1, 64);
}

// Detectors have to be told the share; both are LoRAX's flags.
void add_watermark(CLI::App& app, ServeFlags& f) {
  const char* group = "Watermark (of requests with `watermark: true`)";
  accept_range(app.add_option("--watermark-gamma", f.watermark.gamma,
                              "Share of the vocabulary that is green after a token (default: 0.5)")
                   ->group(group),
               0.01, 0.99);
  accept_range(app.add_option("--watermark-delta", f.watermark.delta,
                              "What is added to the scores of green tokens (default: 2)")
                   ->group(group),
               0.01, 100.0);
}

void add_operation(CLI::App& app, ServeFlags& f) {
  const char* group = "Operation";
  app.add_option("--config", f.config,
                 "YAML file with flags, as `max-num-seqs: 128` (default: none)")
      ->group(group)
      ->type_name(kFile);
  app.add_option(
         "--report", f.report,
         "Print what fits into memory and the flags that change it, and end (default: none, "
         "serve)")
      ->check(CLI::IsMember({"text", "json"}).description(""))
      ->group(group)
      ->type_name("text|json");
  app.add_option("--prefix-caching", f.prefix_caching,
                 "Keep what prompts begin with for others that begin alike (default: true)")
      ->group(group)
      ->type_name("true|false");
  accept_range(app.add_option("--shutdown-timeout", f.shutdown_timeout_s,
                              "Seconds that running requests get after SIGTERM (default: 30)")
                   ->group(group),
               0.0, 86400.0);
  accept_range(app.add_option("--watchdog-timeout", f.watchdog_timeout_s,
                              "Seconds after which a step of the model that does not end ends the "
                              "process, with status 3 (default: 600; 0: never)")
                   ->group(group),
               0.0, 1e6);
  group = "Logging";
  app.add_flag("--json-output", f.json_output, "Log as JSON lines")->group(group);
  app.add_flag("--disable-log-requests", f.no_request_log, "No line in the log for each request")
      ->group(group);
  app.add_option("--otlp-endpoint", f.otlp_endpoint,
                 "Collector of traces: OTLP/HTTP with JSON, as http://localhost:4318 (default: "
                 "none)")
      ->group(group)
      ->type_name("URL");
  add_progress_flag(app, f.model.download.no_progress, group);
  app.add_option("--log-level", f.log_level, "What is worth a line (default: info)")
      ->group(group)
      ->type_name(kLogLevels);
}

// What to ask the model, in its own words: example_prompts.json in its folder, a list of texts.
std::vector<std::string> example_prompts(const std::string& folder) {
  const std::string path = join_path(folder, "example_prompts.json");
  std::vector<std::string> prompts;
  if (!file_exists(path)) return prompts;
  const json::value list = parse_json_file(path, kMaxExamples);
  for (const json::value& prompt : list.is_array() ? list.get_array() : json::array{nullptr}) {
    if (!prompt.is_string() || prompt.get_string().empty()) {
      fail(Code::bad_file, "{}: expected a list of texts", quote(path));
    }
    prompts.emplace_back(prompt.get_string());
  }
  return prompts;
}

}  // namespace

void add_serve_flags(CLI::App& app, ServeFlags& flags) {
  add_model_flags(app, flags.model, false);
  add_rank_flags(app, flags.ranks);
  add_network(app, flags);
  add_access_flags(app, flags.access);
  add_adapter_flags(app, flags.adapters);
  add_limits(app, flags);
  add_watermark(app, flags);
  add_operation(app, flags);
  add_compat_flags(app);
}

EngineOptions engine_options(const ServeFlags& f, const ModelPlace& place) {
  EngineOptions o = engine_options(f.model, place);
  o.max_sequences = f.max_sequences;
  o.max_batch_tokens =
      f.max_batch_tokens > 0 ? f.max_batch_tokens : std::max(kBatchTokens, f.max_sequences);
  o.max_logit_rows = std::max(kLogitRows, f.max_sequences);
  o.max_total_tokens = f.max_total_tokens;
  o.prefix_cache = f.prefix_caching;
  o.max_requests = f.max_requests;
  set_adapters(o, f.adapters, f.model.download.cache);
  const std::string& name = f.served_name.empty() ? place.name : f.served_name;
  if (has_adapter(o, name)) {
    fail(Code::invalid_argument, "--served-model-name {} is an adapter's name too", quote(name));
  }
  return o;
}

ServerOptions server_options(const ServeFlags& f, const ModelPlace& place) {
  ServerOptions o;
  o.http.host = f.host;
  o.http.port = f.port;
  o.served_name = f.served_name.empty() ? place.name : f.served_name;
  o.version = LORRY_VERSION;
  o.max_input_length = f.max_input_length;
  o.max_best_of = f.max_best_of;
  o.max_stop_sequences = f.max_stop_sequences;
  o.watermark = f.watermark;
  o.max_concurrent_requests = f.max_requests;
  o.max_queue_seconds = f.max_queue_seconds;
  o.validation_workers = f.validation_workers;
  o.adapters = adapter_policy(f.adapters);
  o.adapter_root = f.adapters.root;
  o.log_requests = !f.no_request_log;
  o.example_prompts = example_prompts(place.folder);
  set_access(o, f.access);
  return o;
}

}  // namespace lorry
