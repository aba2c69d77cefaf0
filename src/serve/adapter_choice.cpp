#include "serve/adapter_choice.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "adapters/names.h"
#include "base/error.h"
#include "serve/errors.h"
#include "serve/request_json.h"

namespace lorry {

namespace {

[[noreturn]] void refuse(std::string_view field, const std::string& message) {
  throw RequestError(Problem::bad_value, message, std::string(field));
}

// S3 prefixes have more parts than other names; what they are, the source itself checks.
void check_name(const std::string& name, std::string_view field, bool s3 = false) {
  const auto printable = [](char c) { return c > 0x20 && c < 0x7f; };
  if (s3 && !name.empty() && name.size() <= 1024 &&
      std::all_of(name.begin(), name.end(), printable)) {
    return;
  }
  try {
    check_adapter_name(name);
  } catch (const Error& e) {
    refuse(field, e.what());
  }
}

AdapterPart part_of(const json::value& id, const json::value* weight, std::string_view field) {
  AdapterPart part;
  if (!id.is_string()) refuse(field, fmt::format("`{}` holds an id that is no string", field));
  part.name = text_of(id);
  check_name(part.name, field);
  if (weight == nullptr) return part;
  const double w = weight->is_number() ? weight->to_number<double>() : NAN;
  part.weight = static_cast<float>(w);
  if (!std::isfinite(part.weight)) {
    refuse(field, fmt::format("`{}` holds a weight that is no finite number", field));
  }
  return part;
}

void check_count(size_t n, std::string_view field) {
  if (n == 0) refuse(field, "at least one adapter ID must be provided when setting `adapters`");
  if (n > kMaxMerged) {
    refuse(field,
           fmt::format("at most {} adapters are merged in one request. Given: {}", kMaxMerged, n));
  }
}

// The entry of `names` that the member says; `otherwise` where it is absent.
template <class T, size_t N>
T choice(const json::object& object, std::string_view name,
         const std::array<std::pair<std::string_view, T>, N>& names, T otherwise) {
  const json::value* value = member(object, name);
  if (value == nullptr) return otherwise;
  std::string known;
  for (const auto& [word, meaning] : names) {
    if (value->is_string() && std::string_view(value->as_string()) == word) return meaning;
    known += fmt::format("{}{}", known.empty() ? "" : ", ", word);
  }
  refuse(name, fmt::format(
                   "`{}` must be one of {}. Given: {}", name, known,
                   value->is_string() ? quote(text_of(*value), 40) : std::string(kind_of(*value))));
}

// The share of values that the strategies which drop some keep. LoRAX's default, 0, would leave
// nothing of any adapter: it has to be said.
double density_of(const json::object& object, MergeSpec::Strategy strategy) {
  using Strategy = MergeSpec::Strategy;
  if (strategy == Strategy::linear || strategy == Strategy::cat) return 1;
  const json::value* value = member(object, "density");
  const double density = value != nullptr && value->is_number() ? value->to_number<double>() : 0;
  if (density > 0 && density <= 1) return density;
  refuse("density", fmt::format("`density` must be > 0 and <= 1 for the merge strategy {}",
                                to_string(strategy)));
}

uint64_t seed_of(const json::object& object) {
  const json::value* value = member(object, "seed");
  if (value == nullptr) return 0;
  if (value->is_uint64()) return value->as_uint64();
  if (!value->is_int64() || value->as_int64() < 0) {
    refuse("seed", "`seed` of a merge must be an integer >= 0");
  }
  return static_cast<uint64_t>(value->as_int64());
}

// Whether `text` is `pattern`, in which a star stands for any characters.
bool matches(std::string_view pattern, std::string_view text) {
  const size_t star = pattern.find('*');
  if (star == pattern.npos) return pattern == text;
  if (!text.starts_with(pattern.substr(0, star))) return false;
  const std::string_view rest = pattern.substr(star + 1);
  for (size_t at = star; at <= text.size(); ++at) {
    if (matches(rest, text.substr(at))) return true;
  }
  return false;
}

void check_allowed(const std::string& name, const AdapterPolicy& policy) {
  const auto allows = [&](const std::string& pattern) { return matches(pattern, name); };
  if (policy.allowed.empty() || std::any_of(policy.allowed.begin(), policy.allowed.end(), allows)) {
    return;
  }
  throw RequestError(
      Problem::bad_adapter,
      fmt::format("the adapter {} is not on this server's list of allowed ones", quote(name, 64)),
      "adapter_id");
}

AdapterSource source_of(const Fields& fields, const AdapterPolicy& policy) {
  if (!fields.adapter_source) return policy.default_source;
  const std::string& name = *fields.adapter_source;
  constexpr std::array kSources = {AdapterSource::local, AdapterSource::hub, AdapterSource::s3};
  for (const AdapterSource source : kSources) {
    if (name != to_string(source)) continue;
    if (std::find(policy.sources.begin(), policy.sources.end(), source) != policy.sources.end()) {
      return source;
    }
    throw RequestError(Problem::bad_adapter,
                       fmt::format("the adapter source {} is not enabled on this server", name),
                       "adapter_source");
  }
  if (name == "pbase") {
    throw RequestError(Problem::bad_adapter,
                       "the adapter source pbase is Predibase's own service, which Lorry does not "
                       "ask; use hub, s3 or local",
                       "adapter_source");
  }
  refuse("adapter_source", fmt::format("`adapter_source` must be one of local, hub, s3, pbase. "
                                       "Given: {}",
                                       quote(name, 40)));
}

// LoRAX's clients send their hub token as the bearer. OpenAI's always send some key, which is a
// hub token only where it looks like one.
std::string token_of(const Fields& fields, Api api, std::string_view bearer) {
  if (fields.api_token) return *fields.api_token;
  if (api == Api::lorax || bearer.starts_with("hf_")) return std::string(bearer);
  return {};
}

}  // namespace

AdapterRef read_merge(const json::value& value, std::string_view field) {
  using Strategy = MergeSpec::Strategy;
  using Sign = MergeSpec::MajoritySign;
  static constexpr auto kStrategies = std::to_array<std::pair<std::string_view, Strategy>>(
      {{"linear", Strategy::linear},
       {"cat", Strategy::cat},
       {"ties", Strategy::ties},
       {"dare_linear", Strategy::dare_linear},
       {"dare_ties", Strategy::dare_ties},
       {"magnitude_prune", Strategy::magnitude_prune}});
  static constexpr auto kSigns = std::to_array<std::pair<std::string_view, Sign>>(
      {{"total", Sign::total}, {"frequency", Sign::frequency}});

  if (!value.is_object()) {
    refuse(field, fmt::format("`{}` must be an object, found {}", field, kind_of(value)));
  }
  const json::object& object = value.as_object();
  const json::value* ids = member(object, "ids");
  check_count(ids != nullptr && ids->is_array() ? ids->as_array().size() : 0, field);
  const json::value* weights = member(object, "weights");
  if (weights != nullptr && !weights->is_array()) {
    refuse(field, fmt::format("`weights` must be a list, found {}", kind_of(*weights)));
  }
  const json::array none;
  const json::array& given = weights == nullptr ? none : weights->as_array();
  if (!given.empty() && given.size() != ids->as_array().size()) {
    refuse(field, "number of adapter IDs must match number of adapter weights");
  }
  AdapterRef ref;
  ref.is_merge = true;
  for (size_t i = 0; i < ids->as_array().size(); ++i) {
    ref.parts.push_back(part_of(ids->as_array()[i], given.empty() ? nullptr : &given[i], field));
  }
  ref.merge.strategy = choice(object, "merge_strategy", kStrategies, Strategy::linear);
  ref.merge.majority_sign = choice(object, "majority_sign_method", kSigns, Sign::total);
  ref.merge.density = density_of(object, ref.merge.strategy);
  ref.merge.seed = seed_of(object);
  return ref;
}

AdapterRef read_weighted(const json::value& value, std::string_view field) {
  if (!value.is_array()) {
    refuse(field,
           fmt::format("`{}` must be a list of {{id, weight}}, found {}", field, kind_of(value)));
  }
  check_count(value.as_array().size(), field);
  AdapterRef ref;
  ref.is_merge = true;
  for (const json::value& item : value.as_array()) {
    const json::object* object = item.if_object();
    const json::value* id = object == nullptr ? nullptr : member(*object, "id");
    if (id == nullptr) {
      refuse(field, fmt::format("`{}` holds {}; expected an object with id and weight", field,
                                object == nullptr ? kind_of(item) : "an object without id"));
    }
    ref.parts.push_back(part_of(*id, member(*object, "weight"), field));
  }
  return ref;
}

AdapterRef adapter_of(const Fields& fields, Api api, const std::string& name,
                      std::string_view bearer, const AdapterPolicy& policy) {
  AdapterRef ref;
  if (fields.merge) {
    if (!name.empty()) {
      refuse("merged_adapters", "at most one of `adapter_id` or `adapters` may be provided");
    }
    ref = *fields.merge;
  } else if (name.empty()) {
    source_of(fields, policy);  // what it says must make sense all the same
    ref = AdapterRef(policy.default_adapter);
    for (AdapterPart& part : ref.parts) part.source = policy.default_source;
    return ref;
  } else if (name == kBaseModelId) {
    return ref;
  } else {
    check_name(name, api == Api::lorax ? "adapter_id" : "model",
               source_of(fields, policy) == AdapterSource::s3);
    ref = AdapterRef(name);
  }
  const AdapterSource source = source_of(fields, policy);
  for (AdapterPart& part : ref.parts) {
    check_allowed(part.name, policy);
    part.source = source;
    if (source == AdapterSource::hub) part.api_token = token_of(fields, api, bearer);
  }
  return ref;
}

}  // namespace lorry
