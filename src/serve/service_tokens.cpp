// The routes of Service between text and tokens.
#include <algorithm>

#include "base/error.h"
#include "serve/errors.h"
#include "serve/json_writer.h"
#include "serve/service.h"

namespace lorry {

namespace {

// The answer is some fifty times as long, and the workers have other requests to read.
constexpr size_t kMaxTokenizeBytes = size_t{256} << 10;

HttpResponse json_response(JsonWriter& json) {
  HttpResponse response;
  response.content_type = "application/json";
  response.body = json.take();
  return response;
}

// The characters [start, stop) of `text`. `at` and `byte` remember where the last call ended, as
// tokens come in order.
std::string_view characters(std::string_view text, int32_t start, int32_t stop, int32_t* at,
                            size_t* byte) {
  const auto skip = [&](int32_t to) {
    for (; *at < to && *byte < text.size(); ++*at) {
      *byte += std::max<size_t>(utf8_length(text.substr(*byte)), 1);
    }
  };
  if (start < *at) *at = 0, *byte = 0;
  skip(start);
  const size_t begin = *byte;
  skip(stop);
  return text.substr(begin, *byte - begin);
}

// The ids in `tokens`.
std::vector<int32_t> ids_of(const json::object& body, int32_t vocab, size_t most) {
  const json::value* tokens = body.if_contains("tokens");
  if (tokens == nullptr || !tokens->is_array()) {
    throw RequestError(Problem::bad_value, "`tokens` must be a list of token ids", "tokens");
  }
  if (tokens->as_array().size() > most) {
    throw RequestError(Problem::too_long,
                       fmt::format("`tokens` holds {} ids; at most {} are turned into text at once",
                                   tokens->as_array().size(), most),
                       "tokens");
  }
  std::vector<int32_t> ids;
  for (const json::value& item : tokens->as_array()) {
    const int64_t id = item.is_int64() ? item.as_int64() : -1;
    if (id < 0 || id >= vocab) {
      throw RequestError(Problem::bad_value,
                         fmt::format("`tokens` holds what is no token id, or one that is out of "
                                     "vocabulary (0 to {})",
                                     vocab - 1),
                         "tokens");
    }
    ids.push_back(static_cast<int32_t>(id));
  }
  return ids;
}

}  // namespace

void Service::tokenize(const CallPtr& call) {
  answer_from_worker(call, [this, call] {
    const json::object body = parse_body(call->request.body);
    const json::value* inputs = body.if_contains("inputs");
    if (inputs == nullptr || !inputs->is_string()) {
      throw RequestError(Problem::bad_value, "`inputs` must be a string", "inputs");
    }
    const json::value* special = body.if_contains("add_special_tokens");
    if (special != nullptr && !special->is_null() && !special->is_bool()) {
      throw RequestError(Problem::bad_value, "`add_special_tokens` must be true or false",
                         "add_special_tokens");
    }
    const std::string_view text(inputs->as_string().data(), inputs->as_string().size());
    if (text.size() > kMaxTokenizeBytes) {
      throw RequestError(Problem::too_long,
                         fmt::format("`inputs` has {} bytes; at most {} are tokenised at once",
                                     text.size(), kMaxTokenizeBytes),
                         "inputs");
    }
    EncodeOptions options;
    options.add_special = special == nullptr || special->is_null() || special->as_bool();
    JsonWriter json;
    json.begin_array();
    int32_t at = 0;
    size_t byte = 0;
    for (const TokenSpan& span : intake_.tokenizer.encode_spans(text, options)) {
      const std::string_view part = characters(text, span.start, span.stop, &at, &byte);
      json.begin_object().member("id", span.id);
      json.member("text", std::string(part.empty() ? intake_.tokenizer.piece(span.id) : part));
      json.member("start", span.start).member("stop", span.stop).end_object();
    }
    json.end_array();
    return json_response(json);
  });
}

// As vLLM answers: special tokens are part of the text.
void Service::detokenize(const CallPtr& call) {
  answer_from_worker(call, [this, call] {
    const std::vector<int32_t> ids =
        ids_of(parse_body(call->request.body), intake_.limits.vocab, kMaxTokenizeBytes);
    JsonWriter json;
    json.begin_object().member("prompt", intake_.tokenizer.decode(ids, false)).end_object();
    return json_response(json);
  });
}

}  // namespace lorry
