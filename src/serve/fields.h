// The generation parameters of every route, from JSON to values. What may be asked, in which
// dialect, with which range and in which words it is refused is one table (field_table.cpp).
#pragma once
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "adapters/adapter_ref.h"
#include "base/json.h"
#include "engine/sampling.h"
#include "serve/answer_format.h"

namespace lorry {

enum class Api : unsigned { lorax = 1, chat = 2, completions = 4, responses = 8 };

// What a client gave; empty or false where it gave nothing.
struct Fields {
  std::optional<std::string> model, adapter_id, adapter_source, api_token, user, cache_salt;
  std::optional<AdapterRef> merge;  // merged_adapters or adapters; without source and token
  std::optional<double> temperature, top_p, min_p, typical_p;
  std::optional<double> repetition_penalty, frequency_penalty, presence_penalty;
  std::optional<int64_t> top_k, best_of, n, max_new_tokens, truncate;
  std::optional<int64_t> alternatives;  // of each token; on completions also asks for logprobs
  std::optional<uint64_t> seed;
  bool do_sample = false, watermark = false, ignore_eos = false, stream = false;
  bool return_full_text = false, apply_chat_template = false;
  bool details = false, decoder_input_details = false;
  bool logprobs = false, echo = false, parallel_tool_calls = true;
  bool include_usage = false, continuous_usage = false;
  std::vector<std::string> stop;
  std::vector<int32_t> stop_token_ids;
  std::vector<std::pair<int32_t, float>> logit_bias;
  std::optional<AnswerFormat> format;
};

struct Limits {
  int64_t max_total_tokens = 0;  // prompt and answer
  int64_t max_input_length = 0;  // prompt
  int64_t max_best_of = 2;
  int64_t max_stop_sequences = 4;
  int64_t max_stop_bytes = 1024;  // of one sequence
  int64_t max_n = 128;            // answers of one request, all its prompts together
  int64_t max_logit_bias = 1024;
  int32_t vocab = 0;
};

// What the server says about adapters that a request leaves open.
struct AdapterPolicy {
  std::string default_adapter;  // of requests that name none; empty: the base model
  AdapterSource default_source = AdapterSource::local;
  std::vector<AdapterSource> sources = {AdapterSource::local};  // that requests may name
  // Names that requests may ask for, as "org/*" or "org/name@5f3e..."; empty: all.
  std::vector<std::string> allowed = {};
};

struct FieldRule;
using FieldReader = void (*)(const json::value& value, const FieldRule& rule, const Limits& limits,
                             Fields& out);
struct ReadElsewhere {};
// Known and not supported: refused unless the value asks for nothing (null, false, empty) or is one
// of the words in `harmless`, separated by blanks.
struct NotSupported {
  std::string_view harmless = {};
};

struct FieldRange {
  double low = 0;
  double high = 0;
  bool low_open = false;
  bool high_open = false;
};

struct FieldRule {
  std::string_view name;
  unsigned apis;  // Api bits
  std::variant<bool Fields::*, std::optional<double> Fields::*, std::optional<int64_t> Fields::*,
               std::optional<uint64_t> Fields::*, std::optional<std::string> Fields::*, FieldReader,
               ReadElsewhere, NotSupported>
      target;
  FieldRange range = {};  // numbers
  std::string_view sentence =
      {};  // LoRAX's refusal of what is out of range; else made of the range
};

std::span<const FieldRule> field_table();

// Reads the fields of `object` that `api` knows; the names that it does not know are appended to
// *unknown. Throws RequestError naming the field. null is as good as absent.
Fields read_fields(const json::object& object, Api api, const Limits& limits,
                   std::vector<std::string>* unknown);

// Throws RequestError where fields contradict each other or the limits.
void check_fields(const Fields& fields, Api api, const Limits& limits);

// How tokens are to be chosen. `random_seed` is used when sampling and none was given, `watermark`
// when the request asks for one.
SamplingParams sampling_of(const Fields& fields, Api api, uint64_t random_seed,
                           const Watermark& watermark);

}  // namespace lorry
