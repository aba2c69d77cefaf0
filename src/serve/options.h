// What the command line decides about serving.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "serve/fields.h"
#include "serve/http.h"
#include "serve/keys.h"

namespace lorry {

class Tracing;

struct ServerOptions {
  HttpOptions http;
  std::string served_name;          // of the base model on /v1; empty: the model's own name
  std::string version = "unknown";  // of this program
  int64_t max_input_length = 0;     // tokens; 0: all but one of what the model admits
  int64_t max_best_of = 2;
  int64_t max_stop_sequences = 4;
  Watermark watermark;  // of requests that ask for one
  int64_t max_concurrent_requests = 1024;
  double max_queue_seconds = 0;         // from receipt to the first step; 0: no limit
  int validation_workers = 2;           // threads that parse and tokenise
  double unhealthy_after_seconds = 60;  // of silence of the engine while it has work
  AdapterPolicy adapters;
  std::string adapter_root;          // folders that may be loaded under a name; empty: none may
  std::vector<ApiKey> keys;          // empty: everybody may ask
  int64_t max_requests_per_key = 0;  // at a time; 0: no limit
  bool log_requests = true;          // a line for each, at its end
  Tracing* tracing = nullptr;        // outlives the server; null: no spans
  bool metrics_public = false;       // /metrics needs no key
  bool web = true;                   // the web page at /
  std::vector<std::string> example_prompts;  // that the page offers and /info lists
  std::vector<std::string> cors_origins;     // whose pages may read answers; "*": all; empty: none
  std::vector<std::string> allowed_hosts;    // beside loopback's, when bound to loopback
};

}  // namespace lorry
