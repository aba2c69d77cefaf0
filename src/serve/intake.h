// What turns a request's body into a Job needs to know, and the steps that the dialects share.
// Runs on the workers; const.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "serve/fields.h"
#include "serve/generation.h"
#include "serve/grammar_cache.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace lorry {

struct Intake {
  const Tokenizer& tokenizer;
  const ChatTemplate* chat = nullptr;  // null: the model has none
  Limits limits = {};
  AdapterPolicy adapters = {};
  Watermark watermark = {};      // of requests that ask for one
  std::string served_name = {};  // of the base model
  std::string model_name = {};   // its other name
  GrammarCache& grammars;
};

// What a request brings to the making of its Job; views into it.
struct Asked {
  std::string_view body;
  std::string_view bearer;  // token of its Authorization header; may be empty
};

// Parses a body that must be a JSON object. Throws Error(bad_file) or RequestError.
json::object parse_body(std::string_view body);

// Throws RequestError(too_long) when no text of that many bytes can fit: before tokenising it.
void check_bytes(size_t bytes, Api api, const Intake& intake);

// Fills in job.request.max_new_tokens and checks every prompt and the sum against the limits.
// `by_default`: tokens when none are asked for; 0: as many as fit.
void settle_length(Job& job, int64_t by_default, const Limits& limits);

// Fills in what every dialect takes from its fields in the same way, and compiles the grammar.
void settle_request(Job& job, const Intake& intake);

// Renders messages (a JSON array) with the model's template. `variables`: a JSON object,
// ChatOptions'.
Prompt render_chat(std::string_view messages, const Intake& intake,
                   const std::string& variables = "{}");

// 64 bits from the system's generator.
uint64_t random_u64();
std::string random_id();  // 32 hexadecimal digits

// Text that stands for one token in lists of log-probabilities: what it adds, the name of a special
// token, "bytes:\xe4" for a part of a character (so that different tokens stay different).
std::string token_label(const Tokenizer& tokenizer, int32_t id);

// One event of a stream.
std::string sse_event(std::string_view json);

}  // namespace lorry
