// The flags that every command with a model has, and what they mean for the engine.
#pragma once
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cli/demo.h"
#include "cli/quantize_flag.h"
#include "engine/engine.h"

namespace CLI {
class App;
}

namespace lorry {

inline constexpr const char* kDemoModel = "demo";

// How a model comes that is not here.
struct ModelDownload {
  std::string revision;  // of the hub
  std::string cache;     // folder; empty: the usual ones
  bool no_progress = false;
  bool silent = false;  // of several ranks one speaks
};

struct ModelFlags {
  std::string model = kDemoModel;
  ModelDownload download;
  std::string dtype = "bfloat16";
  QuantizeFlags quantize;
  std::string kv_dtype;
  bool map_weights = false;
  int32_t threads = 0;
  std::string isa;
  std::string numa = "auto";
  std::string device = "auto";
  int32_t prefill_chunk = 0;
  int32_t speculative_tokens = 0;
  int32_t max_medusa_heads = 0;
  int64_t kv_tokens = 0;
  int64_t adapter_memory = 0;
  double adapter_memory_fraction = EngineOptions{}.adapter_memory_fraction;
  int64_t adapter_host_memory = 0;
  int32_t max_lora_rank = 64;
};

// --device.
void add_device_flag(CLI::App& app, std::string& device, const char* group);

// --numa.
void add_numa_flag(CLI::App& app, std::string& numa, const char* group);

// `required`: a model must be named, otherwise the demo is the default.
void add_model_flags(CLI::App& app, ModelFlags& flags, bool required);

// A model as a command names it: its folder and the adapters that come with it.
struct ModelPlace {
  std::string name;                                           // as it was named, for people
  std::string folder;                                         // or "synthetic:..."
  std::vector<std::pair<std::string, std::string>> adapters;  // name, folder
  std::unique_ptr<DemoFiles> demo;                            // keeps the files while in use
};

// "demo", "demo:mixtral", "demo:dbrx", a folder, a synthetic model's name; or a name on the hub or
// of S3, which is downloaded. Throws Error(not_found) for another demo or a folder that is not
// there, and what the download throws.
ModelPlace find_model(const std::string& name, const ModelDownload& download = {});

EngineOptions engine_options(const ModelFlags& flags, const ModelPlace& place);

// Adds `text` (NAME=FOLDER, or the NAME of an adapter that is there) to the adapters of `options`
// where it brings a folder; returns the name. Throws Error(not_found) for a folder that is not
// there, and for another name listing those there are.
std::string add_adapter(EngineOptions& options, const std::string& text);

}  // namespace lorry
