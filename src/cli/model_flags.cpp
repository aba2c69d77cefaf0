#include "cli/model_flags.h"

#include <algorithm>
#include <filesystem>
#include <limits>

#include <CLI/CLI.hpp>

#include "base/error.h"
#include "base/files.h"
#include "cli/environment.h"
#include "cli/progress_line.h"
#include "cli/pull.h"
#include "cli/values.h"
#include "models/synthetic.h"

namespace lorry {

namespace {

constexpr int64_t kMaxInt = std::numeric_limits<int32_t>::max();

std::vector<std::pair<std::string, std::string>> adapters_in(const std::string& folder) {
  std::vector<std::pair<std::string, std::string>> adapters;
  if (!is_directory(folder)) return adapters;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.is_directory()) {
      adapters.emplace_back(entry.path().filename().string(), entry.path().string());
    }
  }
  std::sort(adapters.begin(), adapters.end());
  return adapters;
}

// A mistyped path is no name on a hub: where its first folder is here, the rest should be as well.
bool is_elsewhere(const std::string& name) {
  return is_remote_name(name) && !is_directory(name.substr(0, name.find('/')));
}

// Where a folder is missing, says which kinds of names there are.
void check_folder(const std::string& folder) {
  if (is_synthetic(folder) || is_directory(folder)) return;
  if (is_remote_name(folder)) {
    fail(
        Code::not_found,
        "{} is no folder here, though its first part is; if the hub's model of that name is meant: "
        "lorry pull {}",
        quote(folder), folder);
  }
  fail(Code::not_found,
       "{} is no folder; a model is a folder with config.json and model.safetensors, OWNER/NAME on "
       "the hub, s3://BUCKET/PREFIX, 'demo' or 'demo:dbrx'{}",
       quote(folder), file_exists(folder) ? " (this is a file: name the folder it is in)" : "");
}

std::string download_model(const std::string& name, const ModelDownload& d) {
  const PullTalk talk = d.silent        ? PullTalk::silent
                        : d.no_progress ? PullTalk::lines_only
                                        : PullTalk::all;
  try {
    return pull({name, d.revision, d.cache}, RemoteKind::model, talk).folder;
  } catch (const Error& e) {
    fail(e.code(), "{} is no folder here; as a name elsewhere: {}", quote(name), e.what());
  }
}

void add_memory_flags(CLI::App& app, ModelFlags& f) {
  const char* memory = "Memory";
  add_kv_dtype_flag(app, f.kv_dtype, memory);
  accept_units(app.add_option("--kv-tokens,--max-batch-total-tokens", f.kv_tokens,
                              "Tokens that the KV cache holds (default: by free memory)")
                   ->group(memory),
               0, int64_t{1} << 40);
  accept_units(
      app.add_option("--adapter-memory", f.adapter_memory,
                     "Memory for adapters, as 64M or 1G (default: a tenth of what is free)")
          ->group(memory),
      0, int64_t{1} << 50);
  accept_range(app.add_option("--adapter-memory-fraction", f.adapter_memory_fraction,
                              "Without --adapter-memory: a part of what is free (default: 0.1)")
                   ->group(memory),
               0.0, 1.0);
  accept_units(app.add_option("--adapter-host-memory", f.adapter_host_memory,
                              "More memory, for adapters that wait until they fit beside those in "
                              "use: worth it where those are on a device (default: none)")
                   ->group(memory),
               0, int64_t{1} << 50);
  accept_units(app.add_option("--max-lora-rank", f.max_lora_rank,
                              "Largest rank of an adapter, 1 to 512 (default: 64)")
                   ->group(memory),
               1, 512);
  accept_units(app.add_option("--max-medusa-heads", f.max_medusa_heads,
                              "Most Medusa heads of an adapter, whose guesses are verified like "
                              "--speculative-tokens (default: 0, such adapters are refused)")
                   ->group(memory),
               0, 16);
}

}  // namespace

void add_device_flag(CLI::App& app, std::string& device, const char* group) {
  app.add_option("--device", device,
                 "What computes; auto: an NVIDIA GPU where there is one that can (default: auto)")
      ->group(group)
      ->type_name(kDevices);
}

void add_numa_flag(CLI::App& app, std::string& numa, const char* group) {
  app.add_option("--numa", numa,
                 "auto: where this process may use CPUs of several NUMA nodes, bind threads and "
                 "weights to them, but not those of --map-weights (default: auto)")
      ->group(group)
      ->type_name(kNuma);
}

void add_model_flags(CLI::App& app, ModelFlags& f, bool required) {
  const char* group = "Model and machine";
  app.add_option(
         "model,--model-id", f.model,
         std::string("Folder of the model, OWNER/NAME on the hub, s3://BUCKET/PREFIX, 'demo' "
                     "or 'demo:dbrx'") +
             (required ? "" : " (default: demo)"))
      ->required(required)
      ->group(group)
      ->type_name(kModel);
  app.add_option("--revision", f.download.revision,
                 "Of a MODEL on the hub: branch, tag or commit (default: main)")
      ->group(group)
      ->type_name("NAME");
  app.add_option("--huggingface-hub-cache", f.download.cache,
                 "Folder for what the hub gives (default: HF_HUB_CACHE, or huggingface_hub's)")
      ->group(group)
      ->type_name(kFolder);
  app.add_option("--dtype", f.dtype,
                 "Weights and activations; float16: finer, but nothing beyond 65,504; float32: "
                 "exact, slower "
                 "(default: bfloat16)")
      ->group(group)
      ->type_name(kDtypes);
  add_quantize_flags(app, f.quantize, group);
  add_map_flag(app, f.map_weights, group);
  accept_units(app.add_option("--threads", f.threads, "Compute threads (default: physical cores)")
                   ->group(group),
               0, 4096);
  app.add_option("--isa", f.isa, "Instructions to compute with (default: the best of this CPU)")
      ->group(group)
      ->type_name(kIsas);
  add_numa_flag(app, f.numa, group);
  add_device_flag(app, f.device, group);
  accept_units(app.add_option("--prefill-chunk", f.prefill_chunk,
                              "Tokens of one prompt in one step (default: no limit of its own)")
                   ->group(group),
               0, kMaxInt);
  accept_units(app.add_option("--speculative-tokens", f.speculative_tokens,
                              "Tokens to guess ahead of a text that repeats itself; they are "
                              "verified, so no text changes (default: 0, none)")
                   ->group(group),
               0, 64);
  add_memory_flags(app, f);
}

ModelPlace find_model(const std::string& name, const ModelDownload& download) {
  ModelPlace place;
  place.name = name;
  place.folder = name;
  const std::string prefix = std::string(kDemoModel) + ":";
  if (name != kDemoModel && !name.starts_with(prefix)) {
    if (!is_synthetic(name) && !is_directory(name) && is_elsewhere(name)) {
      place.folder = download_model(name, download);
    }
    check_folder(place.folder);
    return place;
  }
  const std::string which = name == kDemoModel ? "mixtral" : name.substr(prefix.size());
  if (which != "mixtral" && which != "dbrx") {
    fail(Code::not_found, "there is no demo model {}: expected demo (or demo:mixtral), demo:dbrx",
         quote(which));
  }
  place.demo = std::make_unique<DemoFiles>(cache_folder(), temporary_folder());
  place.folder = join_path(place.demo->folder(), which);
  place.adapters = adapters_in(join_path(place.folder, "adapters"));
  return place;
}

EngineOptions engine_options(const ModelFlags& f, const ModelPlace& place) {
  EngineOptions o;
  o.model = place.folder;
  o.dtype = parse_dtype(f.dtype);
  o.formats = parse_quantize(f.quantize, o.format_note);
  o.kv_format = parse_kv_format(f.kv_dtype, o.dtype);
  o.map_weights = f.map_weights;
  o.threads = f.threads;
  o.topology = parse_numa(f.numa);
  o.isa = f.isa;
  o.device = f.device;
  o.prefill_chunk = f.prefill_chunk;
  o.speculative_tokens = f.speculative_tokens;
  o.max_medusa_heads = f.max_medusa_heads;
  o.kv_tokens = f.kv_tokens;
  o.adapter_memory = f.adapter_memory;
  o.adapter_memory_fraction = f.adapter_memory_fraction;
  o.adapter_host_memory = f.adapter_host_memory;
  o.max_lora_rank = f.max_lora_rank;
  o.adapters = place.adapters;
  return o;
}

std::string add_adapter(EngineOptions& options, const std::string& text) {
  NamedPath adapter = parse_name_or_path(text);
  const auto at = std::find_if(options.adapters.begin(), options.adapters.end(),
                               [&](const auto& known) { return known.first == adapter.name; });
  if (!adapter.path.empty()) {
    if (!is_directory(adapter.path)) {
      fail(Code::not_found, "adapter {}: {} is no folder", quote(adapter.name),
           quote(adapter.path));
    }
    if (at != options.adapters.end()) {
      at->second = std::move(adapter.path);
    } else {
      options.adapters.emplace_back(adapter.name, std::move(adapter.path));
    }
  } else if (at == options.adapters.end()) {
    std::string known;
    for (const auto& [name, folder] : options.adapters) known += " " + name;
    fail(Code::not_found, "there is no adapter {} (known:{}); for a folder write NAME=FOLDER",
         quote(adapter.name), known.empty() ? " none" : known);
  }
  return adapter.name;
}

}  // namespace lorry
