// How a request wants its next token chosen, and what it wants to know about the choice.
#pragma once
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

namespace lorry {

// A mark that a detector finds by counting (engine/watermark.h).
struct Watermark {
  double gamma = 0.5;  // this part of the vocabulary is green after each token, in (0, 1)
  float delta = 2.0F;  // is added to the scores of green tokens
};

struct SamplingParams {
  bool sample = false;  // false: the largest score
  float temperature = 1.0F;
  int32_t top_k = 0;                // 0: off
  float top_p = 1.0F;               // 1: off
  float min_p = 0.0F;               // 0: off
  float typical_p = 1.0F;           // 1: off
  float repetition_penalty = 1.0F;  // over prompt and output
  float frequency_penalty = 0.0F;   // over generated tokens
  float presence_penalty = 0.0F;    // over generated tokens
  std::vector<std::pair<int32_t, float>> logit_bias;
  std::optional<Watermark> watermark;
  uint64_t seed = 0;  // with the position it decides the random number: nothing else does

  bool logprobs = false;     // report the chosen token's log-probability
  int32_t alternatives = 0;  // and this many of the most probable tokens
  // Of the model's logits (OpenAI), not the processed scores (LoRAX). With a grammar either is
  // among the tokens that the grammar allows: the others have no probability.
  bool raw_logprobs = false;

  // Whether the largest of the model's logits is all that the request wants of them, grammars
  // apart.
  bool takes_best() const { return !sample && !logprobs && !changes_scores(); }
  // Whether the scores differ from the model's logits before they are sampled from, a grammar's
  // mask apart.
  bool changes_scores() const {
    return watermark || !logit_bias.empty() || repetition_penalty != 1.0F ||
           frequency_penalty != 0.0F || presence_penalty != 0.0F;
  }
};

struct TokenProbability {
  int32_t id = 0;
  float logprob = 0;
};

struct SampledToken {
  int32_t id = 0;
  float logprob = 0;                           // 0 unless asked for
  std::vector<TokenProbability> alternatives;  // falling probability, ties by id
};

}  // namespace lorry
