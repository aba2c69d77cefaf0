// The flags of `lorry serve` about adapters, and what they mean for the engine and the server.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "serve/fields.h"

namespace CLI {
class App;
}

namespace lorry {

struct AdapterFlags {
  std::vector<std::string> lora_modules;  // NAME=FOLDER
  std::string root;
  std::string adapter_id;  // NAME or NAME=FOLDER
  bool merge_weights = false;
  std::vector<std::string> preloaded;
  std::string default_source = "local";
  std::vector<std::string> sources = {"local", "hub", "s3"};
  std::vector<std::string> allowed;
  int32_t max_active = EngineOptions{}.max_active_adapters;
  double cycle_time_s = EngineOptions{}.adapter_cycle_seconds;
};

void add_adapter_flags(CLI::App& app, AdapterFlags& flags);

bool has_adapter(const EngineOptions& options, const std::string& name);

// Adds to `options`; with merge_weights fetches the adapter that is merged. `hub_cache`: a folder
// that a flag names, or empty. Both throw Error for a value that makes no sense.
void set_adapters(EngineOptions& options, const AdapterFlags& flags, const std::string& hub_cache);
AdapterPolicy adapter_policy(const AdapterFlags& flags);

}  // namespace lorry
