// What a request wants its answer to look like: `response_format` in LoRAX's and in OpenAI's form,
// and vLLM's guided_json, guided_regex, guided_choice and structured_outputs.
#pragma once
#include <optional>
#include <string>

#include "base/json.h"
#include "serve/grammar_cache.h"

namespace lorry {

struct AnswerFormat {
  GrammarText grammar;
  std::string field;  // that asked for it
};

// Each reads the value of the field `name`; empty: any text will do. What is compiled from it is
// checked later. Throw RequestError.
std::optional<AnswerFormat> read_response_format(const json::value& value, const std::string& name);
std::optional<AnswerFormat> read_guided_json(const json::value& value, const std::string& name);
std::optional<AnswerFormat> read_guided_regex(const json::value& value, const std::string& name);
std::optional<AnswerFormat> read_guided_choice(const json::value& value, const std::string& name);
std::optional<AnswerFormat> read_structured_outputs(const json::value& value,
                                                    const std::string& name);

}  // namespace lorry
