#include "cli/adapter_flags.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <limits>

#include <CLI/CLI.hpp>

#include "adapters/names.h"
#include "base/error.h"
#include "base/files.h"
#include "cli/model_flags.h"
#include "cli/sources.h"
#include "cli/values.h"

namespace lorry {

namespace {

void need_folder(const std::string& flag, const std::string& folder) {
  if (!is_directory(folder)) fail(Code::not_found, "{}: {} is no folder", flag, quote(folder));
}

AdapterSource source_of(const std::string& flag, const std::string& name) {
  for (const AdapterSource s : {AdapterSource::local, AdapterSource::hub, AdapterSource::s3}) {
    if (name == to_string(s)) return s;
  }
  fail(Code::invalid_argument, "{} {}: expected local, hub or s3", flag, quote(name));
}

AdapterRef ref_of(const std::string& name, const AdapterFlags& f) {
  AdapterRef ref(name);
  for (AdapterPart& part : ref.parts) {
    part.source = source_of("--default-adapter-source", f.default_source);
  }
  return ref;
}

// The name that --adapter-id gives, with or without a folder.
std::string default_name(const AdapterFlags& f) {
  return f.adapter_id.empty() ? std::string() : parse_name_or_path(f.adapter_id).name;
}

// Where the files of an adapter are; those of the hub and of S3 are fetched.
std::string folder_of(const EngineOptions& o, const AdapterRef& ref) {
  const AdapterPart& part = ref.parts.front();
  for (const auto& [name, folder] : o.adapters) {
    if (name == part.name) return folder;
  }
  if (part.source == AdapterSource::local) {
    if (o.adapter_root.empty()) fail(Code::not_found, "there is no adapter {}", quote(part.name));
    return local_adapter_folder(o.adapter_root, part.name);
  }
  const std::atomic<bool> cancelled{false};
  return o.adapter_fetch(part, cancelled);
}

void add_modules(EngineOptions& o, const AdapterFlags& f) {
  for (const std::string& module : f.lora_modules) {
    const NamedPath adapter = parse_named_path(module);  // here a name alone means nothing
    need_folder("--lora-modules " + adapter.name, adapter.path);
    if (has_adapter(o, adapter.name)) {
      fail(Code::invalid_argument, "--lora-modules: there are two adapters named {}",
           quote(adapter.name));
    }
    add_adapter(o, module);
  }
}

void add_default(EngineOptions& o, const AdapterFlags& f) {
  if (f.adapter_id.empty()) {
    if (!f.merge_weights) return;
    fail(Code::invalid_argument, "--merge-adapter-weights needs --adapter-id: which adapter?");
  }
  const NamedPath given = parse_name_or_path(f.adapter_id);
  if (!given.path.empty()) {
    need_folder("--adapter-id " + given.name, given.path);
    add_adapter(o, f.adapter_id);
  }
  const AdapterRef ref = ref_of(given.name, f);
  if (f.merge_weights) {
    o.folded_adapter = folder_of(o, ref);
  } else {
    o.preloaded_adapters.push_back(ref);
  }
}

}  // namespace

void add_adapter_flags(CLI::App& app, AdapterFlags& f) {
  const char* group = "Adapters";
  app.add_option("--lora-modules", f.lora_modules, "Adapters by name, any number (default: none)")
      ->group(group)
      ->type_name(kNamedFolder);
  app.add_option("--adapter-root", f.root,
                 "Requests may name any folder below this one (default: none)")
      ->group(group)
      ->type_name(kFolder);
  app.add_option("--adapter-id", f.adapter_id,
                 "Adapter of requests that name none (default: none, the base model)")
      ->group(group)
      ->type_name("NAME|NAME=FOLDER");
  app.add_flag("--merge-adapter-weights", f.merge_weights,
               "Merge --adapter-id into the base weights at start")
      ->group(group);
  app.add_option("--preloaded-adapter-ids", f.preloaded,
                 "Adapters to load at start, any number (default: none)")
      ->delimiter(',')
      ->group(group)
      ->type_name("NAME");
  app.add_option("--default-adapter-source,--adapter-source", f.default_source,
                 "Where names are looked up that are not registered (default: local)")
      ->group(group)
      ->type_name("local|hub|s3");
  app.add_option("--adapter-sources", f.sources,
                 "Sources that requests may name (default: local hub s3)")
      ->delimiter(',')
      ->group(group)
      ->type_name("local|hub|s3");
  app.add_option("--allowed-adapters", f.allowed,
                 "Names that requests may ask for, as 'org/*' (default: all)")
      ->delimiter(',')
      ->group(group)
      ->type_name("PATTERN");
  accept_units(app.add_option("--max-active-adapters,--max-loras", f.max_active,
                              "Adapters that run at once (default: 1024)")
                   ->group(group),
               1, std::numeric_limits<int32_t>::max());
  accept_range(app.add_option("--adapter-cycle-time-s", f.cycle_time_s,
                              "Seconds that an adapter runs while others wait for its memory "
                              "(default: 0.25)")
                   ->group(group),
               0.0, 86400.0);
}

bool has_adapter(const EngineOptions& o, const std::string& name) {
  return std::any_of(o.adapters.begin(), o.adapters.end(),
                     [&](const auto& known) { return known.first == name; });
}

void set_adapters(EngineOptions& o, const AdapterFlags& f, const std::string& hub_cache) {
  o.adapter_root = f.root;
  o.max_active_adapters = f.max_active;
  o.adapter_cycle_seconds = f.cycle_time_s;
  o.adapter_fetch = make_fetch(hub_cache);
  if (!o.adapter_root.empty()) need_folder("--adapter-root", o.adapter_root);
  for (const std::string& id : f.preloaded) o.preloaded_adapters.push_back(ref_of(id, f));
  add_modules(o, f);
  add_default(o, f);
}

AdapterPolicy adapter_policy(const AdapterFlags& f) {
  AdapterPolicy policy;
  if (!f.merge_weights) policy.default_adapter = default_name(f);
  policy.default_source = source_of("--default-adapter-source", f.default_source);
  policy.sources.clear();
  for (const std::string& name : f.sources) {
    policy.sources.push_back(source_of("--adapter-sources", name));
  }
  policy.allowed = f.allowed;
  return policy;
}

}  // namespace lorry
