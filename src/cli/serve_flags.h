// The flags of `lorry serve`, and what they mean for the engine and the server.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "cli/access_flags.h"
#include "cli/adapter_flags.h"
#include "cli/model_flags.h"
#include "cli/ranks.h"
#include "serve/options.h"

namespace CLI {
class App;
}

namespace lorry {

struct ServeFlags {
  RankFlags ranks;
  ModelFlags model;
  AdapterFlags adapters;
  AccessFlags access;
  std::string config;
  std::string report;  // "text", "json"; empty: serve
  std::string host = "127.0.0.1";
  uint16_t port = 3000;
  std::string served_name;
  int32_t max_requests = 1024;
  double max_queue_seconds = 0;  // 0: no limit
  int64_t max_best_of = 2;
  int64_t max_stop_sequences = 4;
  Watermark watermark;
  int64_t max_input_length = 0;
  int64_t max_total_tokens = 0;
  int32_t max_batch_tokens = 0;  // 0: 512, and no less than max_sequences
  int32_t max_sequences = 64;
  int32_t validation_workers = 2;
  bool prefix_caching = true;
  double shutdown_timeout_s = 30;
  double watchdog_timeout_s = 600;
  bool json_output = false;
  bool no_request_log = false;
  std::string otlp_endpoint;
  std::string log_level = "info";
};

void add_serve_flags(CLI::App& app, ServeFlags& flags);

// Both throw Error for a value that makes no sense.
EngineOptions engine_options(const ServeFlags& flags, const ModelPlace& place);
ServerOptions server_options(const ServeFlags& flags, const ModelPlace& place);

}  // namespace lorry
