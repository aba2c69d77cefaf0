// Log-probabilities in OpenAI's two forms: of those tokens of an answer that were not told yet.
#pragma once
#include <cstddef>

namespace lorry {

struct Answer;
struct Results;
class JsonWriter;
class Tokenizer;

// What was told of one answer.
struct LoggedSoFar {
  size_t tokens = 0;
  size_t text_offset = 0;  // characters of those tokens
};

// A list of tokens, each with its bytes and alternatives: chat's `content`, and responses.
void write_token_logprobs(JsonWriter& json, const Tokenizer& tokenizer, const Answer& answer,
                          LoggedSoFar& so_far);
// The object of lists that completions have.
// With echo the prompt's tokens come first.
void write_completion_logprobs(JsonWriter& json, const Tokenizer& tokenizer, const Results& results,
                               const Answer& answer, LoggedSoFar& so_far);

}  // namespace lorry
