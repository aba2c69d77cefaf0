#include "fetch/adapter_files.h"

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

std::vector<ListedFile> select_adapter_files(const std::vector<ListedFile>& listing,
                                             std::string_view label) {
  std::vector<ListedFile> configs, named, others;
  bool has_pickle = false;
  for (const ListedFile& file : listing) {
    if (!is_safe(file.name)) {
      fail(Code::bad_file, "{}: lists the file {}, which leads out of its folder; it is refused",
           label, quote(file.name));
    }
    if (file.name.find('/') != std::string::npos) continue;
    has_pickle = has_pickle || is_pickle(file.name);
    if (is_config(file.name)) {
      configs.push_back(file);
    } else if (std::find(kWeights.begin(), kWeights.end(), file.name) != kWeights.end()) {
      named.push_back(file);
    } else if (file.name.ends_with(".safetensors")) {
      others.push_back(file);
    }
  }
  std::vector<ListedFile>& weights = named.empty() ? others : named;
  if (weights.empty() && has_pickle) {
    fail(Code::unsupported, "{}: pickle adapters are refused; convert to safetensors", label);
  }
  if (configs.empty() || weights.empty()) {
    fail(Code::not_found, "{}: expected {}, found none: this is no adapter", label,
         configs.empty() ? "adapter_config.json" : "adapter_model.safetensors");
  }
  const auto by_name = [](const ListedFile& a, const ListedFile& b) { return a.name < b.name; };
  std::sort(configs.begin(), configs.end(), by_name);
  std::sort(weights.begin(), weights.end(), by_name);
  configs.insert(configs.end(), weights.begin(), weights.end());
  return configs;
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
