#include "serve/fields.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "serve/errors.h"
#include "serve/request_json.h"

namespace lorry {

namespace {

[[noreturn]] void refuse(std::string_view field, const std::string& message) {
  throw RequestError(Problem::bad_value, message, std::string(field));
}

[[noreturn]] void wrong_kind(const FieldRule& rule, std::string_view wanted,
                             const json::value& value) {
  refuse(rule.name, fmt::format("`{}` must be {}, found {}", rule.name, wanted, kind_of(value)));
}

void check_range(const FieldRule& rule, double x, Api api) {
  const FieldRange& range = rule.range;
  const bool above = range.low_open ? x > range.low : x >= range.low;
  const bool below = range.high_open ? x < range.high : x <= range.high;
  if (above && below) return;
  if (!rule.sentence.empty() && api == Api::lorax) refuse(rule.name, std::string(rule.sentence));
  std::string bounds = fmt::format("{} {}", range.low_open ? ">" : ">=", range.low);
  if (std::isfinite(range.high)) {
    bounds += fmt::format(" and {} {}", range.high_open ? "<" : "<=", range.high);
  }
  refuse(rule.name, fmt::format("`{}` must be {}. Given: {}", rule.name, bounds, x));
}

// Reads one value into the place that its rule names.
struct Reader {
  const json::value& value;
  const FieldRule& rule;
  Api api;
  const Limits& limits;
  Fields& out;

  void operator()(bool Fields::* place) const {
    if (!value.is_bool()) wrong_kind(rule, "true or false", value);
    out.*place = value.as_bool();
  }
  void operator()(std::optional<double> Fields::* place) const {
    if (!value.is_number()) wrong_kind(rule, "a number", value);
    const double number = value.to_number<double>();
    check_range(rule, number, api);
    out.*place = number;
  }
  void operator()(std::optional<int64_t> Fields::* place) const {
    if (value.is_uint64()) check_range(rule, static_cast<double>(value.as_uint64()), api);
    if (!value.is_int64()) wrong_kind(rule, "an integer", value);
    check_range(rule, static_cast<double>(value.as_int64()), api);
    out.*place = value.as_int64();
  }
  void operator()(std::optional<uint64_t> Fields::* place) const {
    if (value.is_uint64()) {
      out.*place = value.as_uint64();
    } else if (!value.is_int64()) {
      wrong_kind(rule, "an integer", value);
    } else if (value.as_int64() < 0) {
      refuse(rule.name, fmt::format("`{}` must be >= 0. Given: {}", rule.name, value.as_int64()));
    } else {
      out.*place = static_cast<uint64_t>(value.as_int64());
    }
  }
  void operator()(std::optional<std::string> Fields::* place) const {
    if (!value.is_string()) wrong_kind(rule, "a string", value);
    out.*place = std::string(value.as_string().data(), value.as_string().size());
  }
  void operator()(FieldReader read) const { read(value, rule, limits, out); }
  void operator()(ReadElsewhere) const {}
  void operator()(NotSupported known) const {
    const bool nothing = (value.is_bool() && !value.as_bool()) ||
                         (value.is_array() && value.as_array().empty()) ||
                         (value.is_object() && value.as_object().empty());
    if (nothing || (value.is_string() && is_harmless(known.harmless))) return;
    refuse(rule.name, fmt::format("`{}` is not supported", rule.name));
  }

  bool is_harmless(std::string_view words) const {
    const std::string_view text(value.as_string().data(), value.as_string().size());
    while (!words.empty()) {
      const std::string_view word = words.substr(0, words.find(' '));
      if (word == text) return true;
      words.remove_prefix(std::min(words.size(), word.size() + 1));
    }
    return false;
  }
};

bool is_known(std::string_view name, Api api) {
  return std::any_of(field_table().begin(), field_table().end(), [&](const FieldRule& rule) {
    return rule.name == name && (rule.apis & static_cast<unsigned>(api)) != 0;
  });
}

bool samples(const Fields& fields, Api api) {
  const double temperature = fields.temperature.value_or(1.0);
  // vLLM's bound: below it dividing by the temperature overflows.
  if (temperature < 1e-5) return false;
  if (api != Api::lorax) return true;
  return fields.do_sample || fields.top_k || fields.top_p.value_or(1.0) < 1.0 ||
         fields.typical_p.value_or(1.0) < 1.0 || temperature != 1.0;
}

void check_best_of(const Fields& fields, Api api, const Limits& limits) {
  if (!fields.best_of) return;
  const int64_t best_of = *fields.best_of;
  if (api == Api::completions) {
    if (best_of < fields.n.value_or(1)) {
      refuse("best_of", fmt::format("`best_of` must be >= `n`. Given: {}", best_of));
    }
    if (best_of > fields.n.value_or(1) && fields.stream) {
      refuse("best_of", "`best_of` > `n` is not supported when streaming tokens");
    }
    return;
  }
  if (best_of <= 0 || best_of > limits.max_best_of) {
    refuse("best_of",
           fmt::format("`best_of` must be > 0 and <= {}. Given: {}", limits.max_best_of, best_of));
  }
  if (best_of == 1) return;
  if (!samples(fields, api)) refuse("best_of", "you must use sampling when `best_of` is > 1");
  if (fields.seed) refuse("seed", "`seed` must not be set when `best_of` > 1");
  if (fields.stream) {
    refuse("best_of", "`best_of` != 1 is not supported when streaming tokens");
  }
}

}  // namespace

Fields read_fields(const json::object& object, Api api, const Limits& limits,
                   std::vector<std::string>* unknown) {
  Fields out;
  for (const FieldRule& rule : field_table()) {
    if ((rule.apis & static_cast<unsigned>(api)) == 0) continue;
    const json::value* value = object.if_contains({rule.name.data(), rule.name.size()});
    if (value == nullptr || value->is_null()) continue;
    std::visit(Reader{*value, rule, api, limits, out}, rule.target);
  }
  for (const auto& member : object) {
    const std::string name(member.key().data(), member.key().size());
    if (!is_known(name, api)) unknown->push_back(name);
  }
  return out;
}

void check_fields(const Fields& fields, Api api, const Limits& limits) {
  check_best_of(fields, api, limits);
  if (api == Api::lorax) {
    if (fields.truncate && (*fields.truncate < 1 || *fields.truncate > limits.max_input_length)) {
      refuse("truncate",
             fmt::format("`truncate` must be strictly positive and less than {}. Given: {}",
                         limits.max_input_length + 1, *fields.truncate));
    }
    if (fields.decoder_input_details && fields.stream) {
      refuse("decoder_input_details",
             "`decoder_input_details` == true is not supported when streaming tokens");
    }
  }
  if (api == Api::chat && fields.alternatives && !fields.logprobs) {
    refuse("top_logprobs", "`top_logprobs` needs `logprobs` to be true");
  }
  if (api == Api::responses && fields.alternatives && !fields.logprobs) {
    refuse("top_logprobs", "`top_logprobs` needs `include` to hold message.output_text.logprobs");
  }
  if (api == Api::completions && fields.max_new_tokens == 0 && !fields.echo) {
    refuse("max_tokens", "`max_tokens` may be 0 only with `echo`");
  }
}

SamplingParams sampling_of(const Fields& fields, Api api, uint64_t random_seed,
                           const Watermark& watermark) {
  SamplingParams out;
  out.sample = samples(fields, api);
  // Greedy: a temperature of 0 is no divisor.
  out.temperature = out.sample ? static_cast<float>(fields.temperature.value_or(1.0)) : 1.0F;
  out.top_k = static_cast<int32_t>(fields.top_k.value_or(0));
  out.top_p = static_cast<float>(fields.top_p.value_or(1.0));
  out.min_p = static_cast<float>(fields.min_p.value_or(0.0));
  out.typical_p = static_cast<float>(fields.typical_p.value_or(1.0));
  out.repetition_penalty = static_cast<float>(fields.repetition_penalty.value_or(1.0));
  out.frequency_penalty = static_cast<float>(fields.frequency_penalty.value_or(0.0));
  out.presence_penalty = static_cast<float>(fields.presence_penalty.value_or(0.0));
  out.logit_bias = fields.logit_bias;
  if (fields.watermark) out.watermark = watermark;
  out.seed = fields.seed.value_or(out.sample ? random_seed : 0);
  out.alternatives = static_cast<int32_t>(fields.alternatives.value_or(0));
  out.raw_logprobs = api != Api::lorax;
  switch (api) {
    case Api::lorax:
      out.logprobs = fields.stream || fields.details || fields.decoder_input_details ||
                     fields.best_of.value_or(1) > 1;
      break;
    case Api::chat:
    case Api::responses:
      out.logprobs = fields.logprobs;
      break;
    case Api::completions:
      out.logprobs =
          fields.alternatives.has_value() || fields.best_of.value_or(1) > fields.n.value_or(1);
      break;
  }
  return out;
}

}  // namespace lorry
