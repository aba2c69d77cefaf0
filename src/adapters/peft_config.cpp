#include "adapters/peft_config.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <limits>

#include <boost/json/serialize.hpp>
#include <re2/re2.h>

#include "base/error.h"

namespace lorry {

namespace {

constexpr size_t kMaxConfigBytes = size_t{4} << 20;
// Of patterns, names and lists: each is tried on every module, so this bounds the work that a file
// can ask for.
constexpr size_t kMaxEntries = 1024;

// Read by PeftConfig itself.
constexpr std::array kUsed = {"peft_type",
                              "r",
                              "lora_alpha",
                              "use_rslora",
                              "use_dora",
                              "ensure_weight_tying",
                              "modules_to_save",
                              "trainable_token_indices",
                              "rank_pattern",
                              "alpha_pattern",
                              "peft_version",
                              "target_parameters",
                              "alora_invocation_tokens",
                              "bias",
                              "init_lora_weights",
                              "base_model_name_or_path"};

// Any value leaves the result as it is: training only, provenance, or already reflected in which
// tensors the file holds. The *_config of initialisers count by init_lora_weights alone.
constexpr std::array kHarmless = {
    "auto_mapping",   "revision",       "task_type",        "inference_mode",
    "lora_dropout",   "target_modules", "exclude_modules",  "layers_to_transform",
    "layers_pattern", "loftq_config",   "eva_config",       "corda_config",
    "lora_ga_config", "megatron_core",  "qalora_group_size"};

template <class Names>
bool contains(const Names& names, std::string_view key) {
  return std::find(names.begin(), names.end(), key) != names.end();
}

// The value as JSON, cut so that a message stays a sentence.
std::string shown(const json::value& v) {
  std::string s = json::serialize(v);
  if (s.size() > 80) s = s.substr(0, 77) + "...";
  return s;
}

bool is_default(const json::value& v) {
  switch (v.kind()) {
    case json::kind::null:
      return true;
    case json::kind::bool_:
      return !v.get_bool();
    case json::kind::string:
      return v.get_string().empty();
    case json::kind::array:
      return v.get_array().empty();
    case json::kind::object:
      return v.get_object().empty();
    default:
      return v.to_number<double>() == 0;
  }
}

const json::value& field(const json::object& o, std::string_view key) {
  static const json::value null;
  const json::value* v = o.if_contains(key);
  return v == nullptr ? null : *v;
}

[[noreturn]] void refuse(const std::string& path, std::string_view name, const json::value& v,
                         std::string_view why) {
  fail(Code::unsupported, "{}: {} is {}: {}", path, name, shown(v), why);
}

// An integer in [1, max]; a whole number written as a float ("8.0") counts.
int32_t read_rank(const std::string& path, const std::string& name, const json::value& v,
                  int32_t max) {
  const double d = v.is_number() ? v.to_number<double>() : 0.0;
  if (!(d >= 1 && d <= max) || d != std::floor(d)) {
    fail(Code::bad_file, "{}: {} is {}; expected a whole number from 1 to {}", path, name, shown(v),
         max);
  }
  return static_cast<int32_t>(d);
}

double read_alpha(const std::string& path, const std::string& name, const json::value& v) {
  const double d = v.is_number() ? v.to_number<double>() : NAN;
  // Beyond this the scale leaves the range of float.
  if (!(std::abs(d) <= 1e30)) {
    fail(Code::bad_file, "{}: {} is {}; expected a finite number of magnitude at most 1e30", path,
         name, shown(v));
  }
  return d;
}

bool read_bool(const std::string& path, const json::object& o, std::string_view key) {
  const json::value& v = field(o, key);
  if (!v.is_null() && !v.is_bool()) {
    fail(Code::bad_file, "{}: {} is {}; expected true or false", path, key, shown(v));
  }
  return v.is_bool() && v.get_bool();
}

// With these initialisers PEFT keeps the adapter as it is written and the base model untouched.
void check_init(const std::string& path, const json::value& v) {
  constexpr std::array plain = {"gaussian", "eva", "orthogonal"};
  if (v.is_null() || v.is_bool()) return;
  if (v.is_string() && contains(plain, std::string_view(v.get_string()))) return;
  refuse(path, "init_lora_weights", v,
         "this initialiser changes the base model's weights, which Lorry does not do; save the "
         "adapter with path_initial_model_for_weight_conversion");
}

void check_fields(const std::string& path, const json::object& o) {
  const json::value& type = field(o, "peft_type");
  if (!type.is_string() || type.get_string() != "LORA") {
    refuse(path, "peft_type", type, "only \"LORA\" is supported");
  }
  const json::value& bias = field(o, "bias");
  if (!bias.is_null() && !(bias.is_string() && bias.get_string() == "none")) {
    refuse(path, "bias", bias, "only \"none\" is supported: adapters with biases are refused");
  }
  check_init(path, field(o, "init_lora_weights"));
  for (const auto& entry : o) {
    const std::string_view key(entry.key());
    if (contains(kUsed, key) || contains(kHarmless, key) || is_default(entry.value())) continue;
    refuse(path, key, entry.value(), "this option is not supported; expected null, false or empty");
  }
}

// A list of token ids.
std::vector<int32_t> read_tokens(const std::string& path, std::string_view name,
                                 const json::value& v) {
  if (!v.is_array()) {
    fail(Code::bad_file, "{}: {} is {}; expected a list of token ids", path, name, shown(v));
  }
  std::vector<int32_t> ids;
  for (const json::value& id : v.get_array()) {
    const double d = id.is_number() ? id.to_number<double>() : -1.0;
    if (!(d >= 0 && d <= std::numeric_limits<int32_t>::max()) || d != std::floor(d)) {
      fail(Code::bad_file, "{}: {} holds {}; expected a token id, a whole number from 0", path,
           name, shown(id));
    }
    ids.push_back(static_cast<int32_t>(d));
  }
  return ids;
}

// As read_tokens, with each id once.
std::vector<int32_t> read_distinct(const std::string& path, const std::string& name,
                                   const json::value& v) {
  std::vector<int32_t> ids = read_tokens(path, name, v);
  std::vector<int32_t> sorted = ids;
  std::sort(sorted.begin(), sorted.end());
  const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
  if (twice != sorted.end()) {
    fail(Code::bad_file, "{}: {} names token {} more than once", path, name, *twice);
  }
  return ids;
}

// A list of names; null is an empty one.
std::vector<std::string> read_names(const std::string& path, const json::object& o,
                                    std::string_view key) {
  const json::value& v = field(o, key);
  std::vector<std::string> names;
  if (v.is_null()) return names;
  if (!v.is_array()) {
    fail(Code::bad_file, "{}: {} is {}; expected a list of names", path, key, shown(v));
  }
  if (v.get_array().size() > kMaxEntries) {
    fail(Code::bad_file, "{}: {} has {} entries; at most {} are supported", path, key,
         v.get_array().size(), kMaxEntries);
  }
  for (const json::value& name : v.get_array()) {
    if (!name.is_string() || name.get_string().empty()) {
      fail(Code::bad_file, "{}: {} holds {}; expected a name", path, key, shown(name));
    }
    names.emplace_back(name.get_string());
  }
  return names;
}

bool before_0_19(const std::string& path, const json::value& v) {
  if (v.is_null()) return true;
  const std::string text = v.is_string() ? std::string(v.get_string()) : std::string();
  int major = 0;
  int minor = 0;
  const char* end = text.data() + text.size();
  const auto first = std::from_chars(text.data(), end, major);
  const bool dotted = first.ec == std::errc() && first.ptr != end && *first.ptr == '.';
  if (!dotted || std::from_chars(first.ptr + 1, end, minor).ec != std::errc()) {
    fail(Code::bad_file, "{}: peft_version is {}; expected a version like \"0.19.0\"", path,
         shown(v));
  }
  return major == 0 && minor < 19;
}

// The entries of rank_pattern or alpha_pattern, in the file's order.
const json::object* pattern_object(const std::string& path, const json::object& o,
                                   std::string_view key) {
  const json::value& v = field(o, key);
  if (v.is_null()) return nullptr;
  if (!v.is_object()) fail(Code::bad_file, "{}: {} is {}; expected an object", path, key, shown(v));
  if (v.get_object().size() > kMaxEntries) {
    fail(Code::bad_file, "{}: {} has {} entries; at most {} are supported", path, key,
         v.get_object().size(), kMaxEntries);
  }
  return &v.get_object();
}

std::unique_ptr<re2::RE2> compile(const std::string& path, const std::string& name,
                                  const std::string& key) {
  RE2::Options options;
  options.set_log_errors(false);
  auto regex = std::make_unique<RE2>("^(.*\\.)?(" + key + ")$", options);
  if (!regex->ok()) {
    fail(Code::unsupported,
         "{}: {} is not a regular expression that Lorry can run ({}); look-around and "
         "back-references are not supported",
         path, name, regex->error());
  }
  return regex;
}

}  // namespace

PeftConfig::PeftConfig() = default;
PeftConfig::PeftConfig(PeftConfig&&) noexcept = default;
PeftConfig& PeftConfig::operator=(PeftConfig&&) noexcept = default;
PeftConfig::~PeftConfig() = default;

PeftConfig PeftConfig::none(std::string base_model) {
  PeftConfig c;
  c.base_model_ = std::move(base_model);
  return c;
}

PeftConfig PeftConfig::read(const std::string& path, int32_t max_rank) {
  return parse(parse_json_file(path, kMaxConfigBytes), path, max_rank);
}

PeftConfig PeftConfig::parse(const json::value& value, std::string path, int32_t max_rank) {
  if (!value.is_object()) fail(Code::bad_file, "{}: expected a JSON object", path);
  const json::object& o = value.get_object();
  PeftConfig c;
  c.path_ = std::move(path);
  if (o.contains("medusa_num_heads")) {
    fail(Code::unsupported, "{}: medusa_num_heads: this is a Medusa speculator, not a LoRA adapter",
         c.path_);
  }
  check_fields(c.path_, o);
  c.parse_numbers(o, max_rank);
  c.use_rslora_ = read_bool(c.path_, o, "use_rslora");
  c.use_dora_ = read_bool(c.path_, o, "use_dora");
  c.ensure_weight_tying_ = read_bool(c.path_, o, "ensure_weight_tying");
  c.old_stacking_ = before_0_19(c.path_, field(o, "peft_version"));
  if (const json::value& v = field(o, "base_model_name_or_path"); v.is_string()) {
    c.base_model_ = std::string(v.get_string());
  }
  c.target_parameters_ = read_names(c.path_, o, "target_parameters");
  c.modules_to_save_ = read_names(c.path_, o, "modules_to_save");
  c.parse_tokens(o);
  return c;
}

void PeftConfig::parse_tokens(const json::object& o) {
  if (const json::value& v = field(o, "alora_invocation_tokens"); !v.is_null()) {
    invocation_tokens_ = read_tokens(path_, "alora_invocation_tokens", v);
    if (invocation_tokens_.size() > kMaxInvocationTokens) {
      fail(Code::unsupported, "{}: alora_invocation_tokens has {} ids; at most {} are supported",
           path_, invocation_tokens_.size(), kMaxInvocationTokens);
    }
  }
  const json::value& tokens = field(o, "trainable_token_indices");
  if (tokens.is_null()) return;
  if (const json::object* lists = tokens.if_object(); lists == nullptr) {
    token_lists_.push_back({{}, read_distinct(path_, "trainable_token_indices", tokens)});
  } else {
    if (lists->size() > kMaxEntries) {
      fail(Code::bad_file, "{}: trainable_token_indices has {} entries; at most {} are supported",
           path_, lists->size(), kMaxEntries);
    }
    for (const auto& entry : *lists) {
      const std::string module(entry.key());
      const std::string name = fmt::format("trainable_token_indices[\"{}\"]", module);
      if (module.empty())
        fail(Code::bad_file, "{}: {}: expected the name of a module", path_, name);
      token_lists_.push_back({module, read_distinct(path_, name, entry.value())});
    }
  }
  std::erase_if(token_lists_, [](const TokenList& list) { return list.ids.empty(); });
}

void PeftConfig::parse_numbers(const json::object& o, int32_t max_rank) {
  r_ = read_rank(path_, "r", field(o, "r"), max_rank);
  alpha_ = read_alpha(path_, "lora_alpha", field(o, "lora_alpha"));
  if (const json::object* patterns = pattern_object(path_, o, "rank_pattern")) {
    for (const auto& entry : *patterns) {
      const std::string key(entry.key());
      const std::string name = fmt::format("rank_pattern[\"{}\"]", key);
      ranks_.push_back(
          {compile(path_, name, key), read_rank(path_, name, entry.value(), max_rank)});
    }
  }
  if (const json::object* patterns = pattern_object(path_, o, "alpha_pattern")) {
    for (const auto& entry : *patterns) {
      const std::string key(entry.key());
      const std::string name = fmt::format("alpha_pattern[\"{}\"]", key);
      alphas_.push_back({compile(path_, name, key), read_alpha(path_, name, entry.value())});
    }
  }
}

template <class T>
const T& PeftConfig::first_match(const std::vector<Pattern<T>>& patterns, const std::string& module,
                                 const T& otherwise) {
  for (const Pattern<T>& p : patterns) {
    if (RE2::PartialMatch(module, *p.regex)) return p.value;
  }
  return otherwise;
}

int32_t PeftConfig::rank_of(const std::string& module) const {
  return first_match(ranks_, module, r_);
}

int32_t PeftConfig::largest_rank() const {
  int32_t largest = r_;
  for (const Pattern<int32_t>& p : ranks_) largest = std::max(largest, p.value);
  return largest;
}

float PeftConfig::scale_of(const std::string& module, int32_t rank) const {
  const double alpha = first_match(alphas_, module, alpha_);
  return static_cast<float>(alpha / (use_rslora_ ? std::sqrt(rank) : rank));
}

bool PeftConfig::targets(const std::string& module, const std::string& parameter) const {
  const std::string name = module + "." + parameter;
  return std::any_of(target_parameters_.begin(), target_parameters_.end(),
                     [&](const std::string& t) { return name == t || name.ends_with("." + t); });
}

}  // namespace lorry
