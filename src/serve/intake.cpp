#include "serve/intake.h"

#include <algorithm>

#include <unistd.h>

#include "base/error.h"
#include "serve/errors.h"
#include "serve/json_writer.h"
#include "serve/request_json.h"

namespace lorry {

namespace {

[[noreturn]] void too_long_for_openai(int64_t input, int64_t wanted, int64_t most) {
  throw RequestError(
      Problem::too_long,
      fmt::format("This model's maximum context length is {} tokens. However, you requested {} "
                  "tokens ({} in the messages, {} in the completion). Please reduce the length of "
                  "the messages or completion.",
                  most, input + wanted, input, wanted));
}

}  // namespace

json::object parse_body(std::string_view body) {
  json::value value = parse_json(body, "the request's body");
  if (!value.is_object()) {
    throw RequestError(Problem::bad_value, fmt::format("the request's body must be a JSON object, "
                                                       "found {}",
                                                       kind_of(value)));
  }
  return std::move(value.as_object());
}

void check_bytes(size_t bytes, Api api, const Intake& intake) {
  const auto longest =
      static_cast<int64_t>(std::max<size_t>(intake.tokenizer.longest_token_bytes(), 1));
  const int64_t least = static_cast<int64_t>(bytes) / longest;
  if (least <= intake.limits.max_input_length) return;
  if (api != Api::lorax) too_long_for_openai(least, 0, intake.limits.max_total_tokens);
  throw RequestError(Problem::too_long,
                     fmt::format("`inputs` must have less than {} tokens. Given: {}",
                                 intake.limits.max_input_length, least));
}

void settle_length(Job& job, int64_t by_default, const Limits& limits) {
  int64_t input = 0;
  for (const Prompt& prompt : job.prompts) {
    input = std::max(input, static_cast<int64_t>(prompt.ids.size()));
  }
  const int64_t room = limits.max_total_tokens - input;
  const int64_t fallback = by_default == 0 ? room : std::min(by_default, room);
  const int64_t wanted = job.fields.max_new_tokens.value_or(std::max<int64_t>(fallback, 1));
  const bool input_fits = input <= limits.max_input_length;
  if (job.api != Api::lorax) {
    if (!input_fits || wanted > room) too_long_for_openai(input, wanted, limits.max_total_tokens);
  } else if (!input_fits) {
    throw RequestError(Problem::too_long,
                       fmt::format("`inputs` must have less than {} tokens. Given: {}",
                                   limits.max_input_length, input));
  } else if (wanted > room) {
    throw RequestError(
        Problem::too_long,
        fmt::format("`inputs` tokens + `max_new_tokens` must be <= {}. Given: {} `inputs` tokens "
                    "and {} `max_new_tokens`",
                    limits.max_total_tokens, input, wanted));
  }
  job.request.max_new_tokens = static_cast<int32_t>(wanted);
}

void settle_request(Job& job, const Intake& intake) {
  const int64_t most = intake.limits.max_n;
  if (static_cast<int64_t>(job.prompts.size()) * job.answers_per_prompt > most) {
    throw RequestError(Problem::bad_value,
                       fmt::format("a request may ask for {} answers, all its prompts together. "
                                   "Given: {} prompts with {} answers each",
                                   most, job.prompts.size(), job.answers_per_prompt));
  }
  job.request.sampling = sampling_of(job.fields, job.api, random_u64(), intake.watermark);
  job.request.ignore_eos = job.fields.ignore_eos;
  job.request.stop = job.fields.stop;
  job.request.stop_token_ids = job.fields.stop_token_ids;
  job.request.cache_salt = job.fields.cache_salt.value_or("");
  if (!job.fields.format) return;
  try {
    job.request.grammar = intake.grammars.compiled(job.fields.format->grammar);
  } catch (const Error& e) {
    const std::string& field = job.fields.format->field;
    throw RequestError(Problem::bad_value, fmt::format("`{}`: {}", field, e.what()), field);
  }
}

Prompt render_chat(std::string_view messages, const Intake& intake, const std::string& variables) {
  if (intake.chat == nullptr) {
    throw RequestError(Problem::chat_template,
                       "the model has no chat template: send a prompt instead of messages");
  }
  try {
    ChatOptions options;
    options.variables = variables;
    RenderedChat rendered = intake.chat->render(messages, options);
    return {std::move(rendered.ids), std::move(rendered.text)};
  } catch (const Error& e) {
    const ApiError error = to_api_error(e, Stage::rendering);
    throw RequestError(error.problem, error.message, "messages");
  }
}

uint64_t random_u64() {
  uint64_t bits = 0;
  // Not std::random_device: libstdc++'s asks the processor what it is, each time, and in a virtual
  // machine that takes 50 us.
  LORRY_CHECK(getentropy(&bits, sizeof bits) == 0);
  return bits;
}

std::string random_id() { return fmt::format("{:016x}{:016x}", random_u64(), random_u64()); }

std::string token_label(const Tokenizer& tokenizer, int32_t id) {
  if (tokenizer.is_special(id)) return std::string(tokenizer.piece(id));
  const std::string_view bytes = tokenizer.bytes(id);
  for (std::string_view rest = bytes; !rest.empty();) {
    const size_t n = utf8_length(rest);
    if (n == 0) {
      std::string label = "bytes:";
      for (const char c : bytes) label += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
      return label;
    }
    rest.remove_prefix(n);
  }
  return std::string(bytes);
}

std::string sse_event(std::string_view json) { return fmt::format("data: {}\n\n", json); }

}  // namespace lorry
