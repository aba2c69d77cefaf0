#include "serve/openai_logprobs.h"

#include <set>

#include "serve/generation.h"
#include "serve/json_writer.h"
#include "serve/openai_api.h"
#include "text/tokenizer.h"

namespace lorry {

namespace {

void write_token(JsonWriter& json, const Tokenizer& tokenizer, int32_t id, float logprob) {
  json.member("token", token_label(tokenizer, id)).member("logprob", logprob);
  json.key("bytes").begin_array();
  const std::string_view bytes =
      tokenizer.is_special(id) ? tokenizer.piece(id) : tokenizer.bytes(id);
  for (const char c : bytes) json.value(static_cast<int>(static_cast<unsigned char>(c)));
  json.end_array();
}

// One list of tokens: with echo the prompt's, then the answer's. The first of a prompt has no
// log-probability.
struct LoggedToken {
  int32_t id = 0;
  const TokenRecord* record = nullptr;  // null: unknown
};

std::vector<LoggedToken> logged_tokens(const Results& results, const Answer& answer) {
  std::vector<LoggedToken> all;
  if (results.job.fields.echo) {
    const std::vector<int32_t>& ids = results.job.prompts[answer.prompt].ids;
    for (size_t i = 0; i < ids.size(); ++i) {
      const bool known = i > 0 && i <= answer.prompt_tokens.size();
      all.push_back({ids[i], known ? &answer.prompt_tokens[i - 1] : nullptr});
    }
  }
  for (const TokenRecord& token : answer.tokens) all.push_back({token.id, &token});
  return all;
}

}  // namespace

void write_token_logprobs(JsonWriter& json, const Tokenizer& tokenizer, const Answer& answer,
                          LoggedSoFar& so_far) {
  json.begin_array();
  for (; so_far.tokens < answer.tokens.size(); ++so_far.tokens) {
    const TokenRecord& token = answer.tokens[so_far.tokens];
    json.begin_object();
    write_token(json, tokenizer, token.id, token.logprob);
    json.key("top_logprobs").begin_array();
    for (const TokenProbability& other : token.alternatives) {
      json.begin_object();
      write_token(json, tokenizer, other.id, other.logprob);
      json.end_object();
    }
    json.end_array().end_object();
  }
  json.end_array();
}

void write_completion_logprobs(JsonWriter& json, const Tokenizer& tokenizer, const Results& results,
                               const Answer& answer, LoggedSoFar& so_far) {
  std::vector<LoggedToken> tokens = logged_tokens(results, answer);
  tokens.erase(tokens.begin(), tokens.begin() + static_cast<int64_t>(so_far.tokens));
  so_far.tokens += tokens.size();

  json.begin_object().key("tokens").begin_array();
  for (const LoggedToken& token : tokens) json.value(token_label(tokenizer, token.id));
  json.end_array().key("token_logprobs").begin_array();
  for (const LoggedToken& token : tokens) {
    token.record != nullptr ? json.value(token.record->logprob) : json.null();
  }
  json.end_array().key("top_logprobs").begin_array();
  for (const LoggedToken& token : tokens) {
    if (token.record == nullptr) {
      json.null();
      continue;
    }
    // Tokens that read the same are one key: the more probable one, which comes first.
    std::set<std::string> written;
    json.begin_object();
    const auto write = [&](int32_t id, float logprob) {
      std::string label = token_label(tokenizer, id);
      if (written.insert(label).second) json.member(label, logprob);
    };
    for (const TokenProbability& other : token.record->alternatives) write(other.id, other.logprob);
    write(token.id, token.record->logprob);
    json.end_object();
  }
  json.end_array().key("text_offset").begin_array();
  for (const LoggedToken& token : tokens) {
    json.value(so_far.text_offset);
    so_far.text_offset += count_characters(token_label(tokenizer, token.id));
  }
  json.end_array().end_object();
}

}  // namespace lorry
