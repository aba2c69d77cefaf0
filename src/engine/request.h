// What the engine is asked and what it answers. A request's answers arrive through its sink, on the
// engine thread, in order: perhaps a start, any number of tokens, then exactly one finish.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "adapters/adapter_ref.h"
#include "engine/sampling.h"
#include "lorry/error.h"
#include "text/constraint.h"

namespace lorry {

using RequestId = uint64_t;

enum class FinishReason : uint8_t {
  length,
  eos_token,
  stop_sequence,
  dead_end,  // the grammar allows no further token, and the answer is not complete
  cancelled,
  failed
};

struct TokenEvent {
  SampledToken token;
  int64_t position = 0;  // in the sequence, prompt included
  bool skipped = false;  // a draft that was kept: it came without a step of its own
};

struct FinishEvent {
  FinishReason reason = FinishReason::length;
  std::optional<Error> error;  // reason == failed
  int32_t prompt_tokens = 0;
  int32_t cached_tokens = 0;  // of the prompt, found in the prefix cache
  int32_t generated_tokens = 0;
  int32_t skipped_tokens = 0;  // of these, kept drafts; depends on who shares the batch
  std::string stop_sequence;   // which one, reason == stop_sequence
  double queue_seconds = 0;    // from submit to the first step that computed for it
  double prefill_seconds = 0;  // from there to the first token
  double decode_seconds = 0;   // from there to the end
};

// Methods are called on the engine thread and must not block.
class RequestSink {
 public:
  virtual ~RequestSink() = default;
  // Rows of logits as they are computed, prompt positions [first, first + n): only for requests
  // with want_logits. rows: n * vocab floats, valid during the call.
  virtual void on_logits(int64_t first, int64_t n, const float* rows, int64_t row_pitch) {
    (void)first, (void)n, (void)rows, (void)row_pitch;
  }
  // Log-probability of prompt token `position` (>= 1) given those before it, with alternatives when
  // asked: only for requests with prompt_logprobs.
  virtual void on_prompt_token(const TokenEvent& event) { (void)event; }
  // Its first rows are about to be computed: it no longer waits. Not called when it ends before.
  virtual void on_start() {}
  virtual void on_token(const TokenEvent& event) = 0;
  virtual void on_finish(const FinishEvent& event) = 0;
};

struct Request {
  std::vector<int32_t> prompt;  // at least one token
  AdapterRef adapter;           // empty: the base model
  SamplingParams sampling;
  int32_t max_new_tokens = 0;  // 0: only compute the prompt
  // What the answer must match; null: anything. Each request has a place of its own in it. An EOS
  // token that the grammar allows ends the answer, ignore_eos or not.
  std::shared_ptr<const Grammar> grammar;
  bool ignore_eos = false;
  std::vector<int32_t> stop_token_ids;
  std::vector<std::string> stop;  // text that ends the answer, looked for in the generated text
  bool prompt_logprobs = false;
  bool want_logits = false;
  uint64_t tenant = 0;     // fairness and the prefix cache are per tenant
  std::string cache_salt;  // requests with different salts share no cached prefix
  std::shared_ptr<RequestSink> sink;
};

}  // namespace lorry
