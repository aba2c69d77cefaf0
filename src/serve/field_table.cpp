// The table of fields, and readers for those that are not a plain number, flag or text.
#include <algorithm>
#include <array>
#include <charconv>
#include <limits>

#include "base/error.h"
#include "serve/adapter_choice.h"
#include "serve/errors.h"
#include "serve/fields.h"
#include "serve/request_json.h"

namespace lorry {

namespace {

void read_stop(const json::value& value, const FieldRule& rule, const Limits& limits, Fields& out) {
  if (value.is_string()) {
    out.stop = {text_of(value)};
  } else if (value.is_array()) {
    const json::array& list = value.as_array();
    if (list.size() > static_cast<size_t>(limits.max_stop_sequences)) {
      refuse_field(rule.name, fmt::format("supports up to {} stop sequences. Given: {}",
                                          limits.max_stop_sequences, list.size()));
    }
    for (const json::value& item : list) {
      if (!item.is_string())
        refuse_field(rule.name, fmt::format("holds {}, not a string", kind_of(item)));
      out.stop.push_back(text_of(item));
    }
  } else {
    refuse_field(rule.name,
                 fmt::format("must be a string or a list of strings, found {}", kind_of(value)));
  }
  for (const std::string& stop : out.stop) {
    if (stop.empty()) refuse_field(rule.name, "sequences cannot be empty");
    if (stop.size() > static_cast<size_t>(limits.max_stop_bytes)) {
      refuse_field(rule.name, fmt::format("sequences have at most {} bytes. Given: {}",
                                          limits.max_stop_bytes, stop.size()));
    }
  }
}

int32_t token_id(const FieldRule& rule, int64_t id, const Limits& limits) {
  if (id < 0 || id >= limits.vocab) {
    refuse_field(rule.name, fmt::format("names the token {}, which is out of vocabulary (0 to {})",
                                        id, limits.vocab - 1));
  }
  return static_cast<int32_t>(id);
}

void read_stop_token_ids(const json::value& value, const FieldRule& rule, const Limits& limits,
                         Fields& out) {
  if (!value.is_array()) {
    refuse_field(rule.name, fmt::format("must be a list of token ids, found {}", kind_of(value)));
  }
  constexpr size_t kMost = 128;
  if (value.as_array().size() > kMost) {
    refuse_field(rule.name,
                 fmt::format("supports up to {} ids. Given: {}", kMost, value.as_array().size()));
  }
  for (const json::value& item : value.as_array()) {
    if (!item.is_int64())
      refuse_field(rule.name, fmt::format("holds {}, not a token id", kind_of(item)));
    out.stop_token_ids.push_back(token_id(rule, item.as_int64(), limits));
  }
}

void read_logit_bias(const json::value& value, const FieldRule& rule, const Limits& limits,
                     Fields& out) {
  if (!value.is_object()) {
    refuse_field(rule.name,
                 fmt::format("must be an object from token id to bias, found {}", kind_of(value)));
  }
  if (value.as_object().size() > static_cast<size_t>(limits.max_logit_bias)) {
    refuse_field(rule.name, fmt::format("supports up to {} entries. Given: {}",
                                        limits.max_logit_bias, value.as_object().size()));
  }
  for (const auto& [key, bias] : value.as_object()) {
    int64_t id = 0;
    const auto end = key.data() + key.size();
    const auto parsed = std::from_chars(key.data(), end, id);
    if (parsed.ec != std::errc() || parsed.ptr != end) {
      refuse_field(rule.name, fmt::format("has the key {}, which is not a token id",
                                          quote({key.data(), key.size()}, 40)));
    }
    if (!bias.is_number())
      refuse_field(rule.name, fmt::format("maps to {}, not a number", kind_of(bias)));
    const double number = bias.to_number<double>();
    if (!(number >= -100 && number <= 100))
      refuse_field(rule.name, "values must be between -100 and 100");
    out.logit_bias.emplace_back(token_id(rule, id, limits), static_cast<float>(number));
  }
}

void set_merge(AdapterRef merge, const FieldRule& rule, Fields& out) {
  if (out.merge)
    refuse_field(rule.name, "says a second time which adapters are merged; give one of them");
  out.merge = std::move(merge);
}

void read_merged_adapters(const json::value& value, const FieldRule& rule, const Limits&,
                          Fields& out) {
  set_merge(read_merge(value, rule.name), rule, out);
}

void read_adapters(const json::value& value, const FieldRule& rule, const Limits&, Fields& out) {
  set_merge(read_weighted(value, rule.name), rule, out);
}

using FormatReader = std::optional<AnswerFormat> (*)(const json::value&, const std::string&);

template <FormatReader read>
void read_format(const json::value& value, const FieldRule& rule, const Limits&, Fields& out) {
  std::optional<AnswerFormat> format = read(value, std::string(rule.name));
  if (!format) return;
  if (out.format) {
    refuse_field(rule.name,
                 fmt::format("and `{}` both say what the answer must match; give one of them",
                             out.format->field));
  }
  out.format = std::move(format);
}

void read_stream_options(const json::value& value, const FieldRule& rule, const Limits&,
                         Fields& out) {
  if (!value.is_object())
    refuse_field(rule.name, fmt::format("must be an object, found {}", kind_of(value)));
  const auto flag = [&](std::string_view name) {
    const json::value* found = value.as_object().if_contains({name.data(), name.size()});
    if (found == nullptr || found->is_null()) return false;
    if (!found->is_bool()) refuse_field(rule.name, fmt::format(".{} must be true or false", name));
    return found->as_bool();
  };
  out.include_usage = flag("include_usage");
  out.continuous_usage = flag("continuous_usage_stats");
  if (flag("include_obfuscation")) refuse_field(rule.name, ".include_obfuscation is not supported");
}

// OpenAI's form of responses: {format, verbosity}, the format's parts side by side.
void read_text(const json::value& value, const FieldRule& rule, const Limits& limits, Fields& out) {
  if (!value.is_object())
    refuse_field(rule.name, fmt::format("must be an object, found {}", kind_of(value)));
  if (member(value.as_object(), "verbosity") != nullptr) {
    refuse_field(rule.name, ".verbosity is not supported");
  }
  const json::value* format = member(value.as_object(), "format");
  if (format == nullptr) return;
  read_format<read_response_format>(*format, rule, limits, out);
}

void read_include(const json::value& value, const FieldRule& rule, const Limits&, Fields& out) {
  constexpr std::string_view kLogprobs = "message.output_text.logprobs";
  // What answers here have none of.
  constexpr std::array<std::string_view, 6> kNothing{
      "reasoning.encrypted_content",   "file_search_call.results",
      "web_search_call.results",       "web_search_call.action.sources",
      "code_interpreter_call.outputs", "message.input_image.image_url"};
  if (!value.is_array())
    refuse_field(rule.name, fmt::format("must be a list, found {}", kind_of(value)));
  for (const json::value& item : value.as_array()) {
    if (!item.is_string())
      refuse_field(rule.name, fmt::format("holds {}, not a string", kind_of(item)));
    const std::string what = text_of(item);
    if (what == kLogprobs) {
      out.logprobs = true;
    } else if (std::find(kNothing.begin(), kNothing.end(), what) == kNothing.end()) {
      refuse_field(rule.name,
                   fmt::format("of {} is not supported: expected {}", quote(what, 60), kLogprobs));
    }
  }
}

constexpr unsigned kLorax = static_cast<unsigned>(Api::lorax);
constexpr unsigned kChat = static_cast<unsigned>(Api::chat);
constexpr unsigned kCompletions = static_cast<unsigned>(Api::completions);
constexpr unsigned kResponses = static_cast<unsigned>(Api::responses);
constexpr unsigned kTalk = kChat | kResponses;
constexpr unsigned kOlder = kChat | kCompletions;
constexpr unsigned kV1 = kTalk | kCompletions;
constexpr unsigned kAll = kLorax | kV1;
constexpr double kMost = std::numeric_limits<int32_t>::max();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

constexpr auto kRules = std::to_array<FieldRule>({
    // Choosing the next token, and ending the answer.
    {"temperature",
     kAll,
     &Fields::temperature,
     {0, kInfinity},
     "`temperature` must be non-negative"},
    {"repetition_penalty",
     kAll,
     &Fields::repetition_penalty,
     {.low = 0, .high = kInfinity, .low_open = true},
     "`repetition_penalty` must be strictly positive"},
    {"frequency_penalty", kAll, &Fields::frequency_penalty, {-2, 2}},
    {"presence_penalty", kAll, &Fields::presence_penalty, {-2, 2}},
    {"top_k", kLorax, &Fields::top_k, {1, kMost}, "`top_k` must be strictly positive"},
    {"top_k", kV1, &Fields::top_k, {0, kMost}},
    {"top_p",
     kAll,
     &Fields::top_p,
     {.low = 0, .high = 1, .low_open = true},
     "`top_p` must be > 0.0 and < 1.0"},
    {"typical_p",
     kLorax,
     &Fields::typical_p,
     {.low = 0, .high = 1, .low_open = true, .high_open = true},
     "`typical_p` must be > 0.0 and < 1.0"},
    {"min_p", kV1, &Fields::min_p, {0, 1}},
    {"do_sample", kLorax, &Fields::do_sample},
    {"seed", kAll, &Fields::seed},
    {"logit_bias", kV1, read_logit_bias},
    {"watermark", kLorax, &Fields::watermark},
    {"max_new_tokens",
     kLorax,
     &Fields::max_new_tokens,
     {1, kMost},
     "`max_new_tokens` must be strictly positive"},
    {"max_tokens", kChat, &Fields::max_new_tokens, {1, kMost}},
    {"max_tokens", kCompletions, &Fields::max_new_tokens, {0, kMost}},
    {"max_completion_tokens", kChat, &Fields::max_new_tokens, {1, kMost}},
    {"max_output_tokens", kResponses, &Fields::max_new_tokens, {1, kMost}},
    {"ignore_eos_token", kAll, &Fields::ignore_eos},
    {"ignore_eos", kV1, &Fields::ignore_eos},
    {"stop", kAll, read_stop},
    {"stop_token_ids", kV1, read_stop_token_ids},
    {"best_of", kLorax | kCompletions, &Fields::best_of, {-kMost, kMost}},
    {"n", kOlder, &Fields::n, {1, 128}},

    // Who answers, from what, and in which form.
    {"model", kV1, &Fields::model},
    {"adapter_id", kLorax, &Fields::adapter_id},
    {"adapter_source", kAll, &Fields::adapter_source},
    {"api_token", kAll, &Fields::api_token},
    {"merged_adapters", kAll, read_merged_adapters},
    {"adapter_parameters", kAll, read_merged_adapters},
    {"adapters", kAll, read_adapters},
    {"cache_salt", kV1, &Fields::cache_salt},
    {"user", kV1, &Fields::user},
    {"messages", kChat, ReadElsewhere{}},
    {"prompt", kCompletions, ReadElsewhere{}},
    {"input", kResponses, ReadElsewhere{}},
    {"instructions", kResponses, ReadElsewhere{}},
    {"truncate", kLorax, &Fields::truncate, {-kMost, kMost}},
    {"apply_chat_template", kLorax, &Fields::apply_chat_template},
    {"return_full_text", kLorax, &Fields::return_full_text},
    {"details", kLorax, &Fields::details},
    {"decoder_input_details", kLorax, &Fields::decoder_input_details},
    {"return_k_alternatives",
     kLorax,
     &Fields::alternatives,
     {1, 100},
     "`return_k_alternatives` must be > 0 and <= 100"},
    {"stream", kV1, &Fields::stream},
    {"stream_options", kV1, read_stream_options},
    {"logprobs", kChat, &Fields::logprobs},
    {"top_logprobs", kTalk, &Fields::alternatives, {0, 20}},
    {"logprobs", kCompletions, &Fields::alternatives, {0, 20}},
    {"echo", kCompletions, &Fields::echo},
    {"include", kResponses, read_include},
    {"response_format", kLorax | kOlder, read_format<read_response_format>},
    {"text", kResponses, read_text},
    {"guided_json", kOlder, read_format<read_guided_json>},
    {"guided_regex", kOlder, read_format<read_guided_regex>},
    {"guided_choice", kOlder, read_format<read_guided_choice>},
    {"structured_outputs", kOlder, read_format<read_structured_outputs>},
    {"tools", kTalk, ReadElsewhere{}},
    {"tool_choice", kTalk, ReadElsewhere{}},
    {"parallel_tool_calls", kTalk, &Fields::parallel_tool_calls},

    // Known and refused.
    {"suffix", kCompletions, NotSupported{}},
    {"functions", kChat, NotSupported{}},
    {"function_call", kChat, NotSupported{"none auto"}},
    {"modalities", kChat, NotSupported{}},
    {"audio", kChat, NotSupported{}},
    {"prediction", kChat, NotSupported{}},
    {"web_search_options", kChat, NotSupported{}},
    {"reasoning_effort", kChat, NotSupported{"none"}},
    {"verbosity", kChat, NotSupported{}},
    {"store", kTalk, NotSupported{}},
    {"metadata", kTalk, NotSupported{}},
    {"service_tier", kTalk, NotSupported{"auto default"}},
    {"prompt_cache_key", kTalk, NotSupported{}},
    {"prompt_cache_options", kTalk, NotSupported{}},
    {"prompt_cache_retention", kTalk, NotSupported{}},
    {"moderation", kTalk, NotSupported{}},
    {"safety_identifier", kTalk, NotSupported{}},
    {"previous_response_id", kResponses, NotSupported{}},
    {"conversation", kResponses, NotSupported{}},
    {"background", kResponses, NotSupported{}},
    {"prompt", kResponses, NotSupported{}},
    {"reasoning", kResponses, NotSupported{}},
    {"max_tool_calls", kResponses, NotSupported{}},
    {"truncation", kResponses, NotSupported{"disabled"}},
    {"context_management", kResponses, NotSupported{}},
    {"chat_template", kChat, NotSupported{}},
    {"chat_template_kwargs", kChat, NotSupported{}},
    {"documents", kChat, NotSupported{}},
    {"prompt_embeds", kCompletions, NotSupported{}},
    {"use_beam_search", kOlder, NotSupported{}},
    {"guided_grammar", kOlder, NotSupported{}},
});

}  // namespace

std::span<const FieldRule> field_table() { return kRules; }

}  // namespace lorry
