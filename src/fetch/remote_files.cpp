#include "fetch/remote_files.h"

#include <algorithm>
#include <array>

#include "base/error.h"
#include "base/json.h"
#include "base/system.h"

namespace lorry {

namespace {

constexpr std::array<std::string_view, 2> kConfigs = {"adapter_config.json", "config.json"};
constexpr std::array<std::string_view, 2> kWeights = {"adapter_model.safetensors",
                                                      "medusa_lm_head.safetensors"};
constexpr std::string_view kEnding = ".safetensors";

bool is_pickle(std::string_view name) {
  return name.ends_with(".bin") || name.ends_with(".pt") || name.ends_with(".pth");
}

// The name stays below the folder that it is joined to.
bool is_safe(std::string_view name) {
  if (name.empty() || name.front() == '/') return false;
  for (const char c : name) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) return false;
  }
  for (size_t at = 0; at <= name.size();) {
    const size_t end = std::min(name.find('/', at), name.size());
    if (name.substr(at, end - at) == "..") return false;
    at = end + 1;
  }
  return true;
}

std::string format_size(int64_t bytes) { return format_bytes(static_cast<size_t>(bytes)); }

}  // namespace

bool is_config(std::string_view name) {
  return std::find(kConfigs.begin(), kConfigs.end(), name) != kConfigs.end();
}

namespace {

struct Sorted {
  std::vector<ListedFile> configs, named, others;
  bool has_pickle = false, has_gguf = false;

  std::vector<ListedFile>& weights() { return named.empty() ? others : named; }
};

bool is_named(std::string_view name, RemoteKind kind) {
  if (kind == RemoteKind::adapter) {
    return std::find(kWeights.begin(), kWeights.end(), name) != kWeights.end();
  }
  return name == "model.safetensors" || (name.starts_with("model-") && name.ends_with(kEnding));
}

bool is_configuration(std::string_view name, RemoteKind kind) {
  if (kind == RemoteKind::adapter) return is_config(name);
  return name.ends_with(".json") || name.ends_with(".jinja");
}

Sorted sort_files(const std::vector<ListedFile>& listing, RemoteKind kind, std::string_view label) {
  Sorted s;
  for (const ListedFile& file : listing) {
    if (!is_safe(file.name)) {
      fail(Code::bad_file, "{}: lists the file {}, which leads out of its folder; it is refused",
           label, quote(file.name));
    }
    if (file.name.find('/') != std::string::npos) continue;
    s.has_pickle = s.has_pickle || is_pickle(file.name);
    s.has_gguf = s.has_gguf || file.name.ends_with(".gguf");
    if (is_configuration(file.name, kind)) {
      s.configs.push_back(file);
    } else if (is_named(file.name, kind)) {
      s.named.push_back(file);
    } else if (file.name.ends_with(kEnding)) {
      s.others.push_back(file);
    }
  }
  return s;
}

bool lists(const std::vector<ListedFile>& files, std::string_view name) {
  return std::any_of(files.begin(), files.end(),
                     [&](const ListedFile& f) { return f.name == name; });
}

bool looks_like_adapter(const std::vector<ListedFile>& listing) {
  return lists(listing, kConfigs.front()) || lists(listing, kWeights.back());
}

void check_sorted(Sorted& s, RemoteKind kind, std::string_view label) {
  const bool model = kind == RemoteKind::model;
  if (s.weights().empty() && (s.has_pickle || (model && s.has_gguf))) {
    const char* what = s.has_pickle ? "pickle" : "GGUF";
    fail(Code::unsupported, "{}: {} {} are refused; convert to safetensors", label, what,
         model ? "weights" : "adapters");
  }
  const bool configured = model ? lists(s.configs, "config.json") : !s.configs.empty();
  if (configured && !s.weights().empty()) return;
  const char* config = model ? "config.json" : "adapter_config.json";
  const char* weights = model ? "model.safetensors" : "adapter_model.safetensors";
  fail(Code::not_found, "{}: expected {}, found none: this is no {}", label,
       configured ? weights : config, model ? "model" : "adapter");
}

}  // namespace

RemoteFiles select_files(const std::vector<ListedFile>& listing, RemoteKind wanted,
                         std::string_view label) {
  const bool adapter = looks_like_adapter(listing);
  RemoteFiles result;
  result.kind = wanted;
  if (wanted == RemoteKind::any) result.kind = adapter ? RemoteKind::adapter : RemoteKind::model;
  Sorted s = sort_files(listing, result.kind, label);
  if (wanted == RemoteKind::model && adapter) {
    fail(Code::unsupported, "{}: this is an adapter: name the model that it is for", label);
  }
  check_sorted(s, result.kind, label);
  const auto by_name = [](const ListedFile& a, const ListedFile& b) { return a.name < b.name; };
  std::sort(s.configs.begin(), s.configs.end(), by_name);
  std::sort(s.weights().begin(), s.weights().end(), by_name);
  result.files = std::move(s.configs);
  result.files.insert(result.files.end(), s.weights().begin(), s.weights().end());
  return result;
}

int64_t total_bytes(const std::vector<ListedFile>& files) {
  int64_t total = 0;
  for (const ListedFile& f : files) {
    if (f.size < 0) return -1;
    total += f.size;
  }
  return total;
}

void tell_plan(const FetchControl& control, const RemoteFiles& files, int64_t missing) {
  if (!control.plan) return;
  control.plan(
      {files.kind, static_cast<int64_t>(files.files.size()), total_bytes(files.files), missing});
}

FetchControl control_of_file(const FetchControl& control, int64_t before, int64_t total) {
  FetchControl own = control;
  if (control.progress) {
    own.progress = [&control, before, total](const Progress& p) {
      control.progress({p.what, before + p.done, total});
    };
  }
  return own;
}

int64_t max_bytes_of(const std::string& name, const FetchLimits& limits) {
  return is_config(name) ? limits.max_config_bytes : limits.max_file_bytes;
}

void check_sizes(const std::vector<ListedFile>& files, const FetchLimits& limits,
                 std::string_view label) {
  int64_t total = 0;
  for (const ListedFile& file : files) {
    const int64_t limit = max_bytes_of(file.name, limits);
    if (file.size > limit) {
      fail(Code::bad_file, "{}: {} has {}; at most {} are fetched", label, quote(file.name),
           format_size(file.size), format_size(limit));
    }
    // Both are at most the limits: no overflow.
    total += std::max<int64_t>(file.size, 0);
    if (total > limits.max_total_bytes) {
      fail(Code::bad_file, "{}: its files have more than {} together; at most that is fetched",
           label, format_size(limits.max_total_bytes));
    }
  }
}

void require_speculator(const std::string& path, std::string_view label) {
  const json::value config = parse_json_file(path);
  if (config.is_object() && config.as_object().contains("medusa_num_heads")) return;
  fail(Code::unsupported,
       "{}: holds no adapter_config.json, and its config.json has no medusa_num_heads: this is "
       "neither an adapter nor a speculator",
       label);
}

}  // namespace lorry
