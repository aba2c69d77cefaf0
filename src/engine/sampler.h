// Sampler: from one row of logits to one token, by the request's own parameters and random numbers.
// The order is LoRAX's: the grammar's mask, watermark, bias, repetition, frequency and presence
// penalties, temperature, top-k, top-p, min-p, typical, choice. The mask comes first, so every
// probability, also a raw one, is of the distribution over the tokens that the request allows.
#pragma once
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "engine/sampling.h"
#include "engine/watermark.h"

namespace lorry {

// Tokens of one sequence as the penalties and the watermark see them.
struct SamplingHistory {
  std::span<const int32_t> tokens;  // prompt and output; with a watermark at least one
  size_t n_prompt = 0;
  // Bit i % 32 of allowed[i / 32]: token i may be chosen. Empty: all of them may.
  std::span<const uint32_t> allowed = {};
};

class Sampler {
 public:
  // One per thread: owns the working memory for a vocabulary.
  explicit Sampler(int64_t vocab);

  // `position` is that of the token to be chosen. Empty when the logits of the tokens that may be
  // chosen hold a NaN or nothing but -inf: there is no meaningful choice.
  std::optional<SampledToken> sample(std::span<const float> logits, const SamplingParams& params,
                                     const SamplingHistory& history, uint64_t position);

  // The log-probability of a given token, with the alternatives that params ask for.
  SampledToken score(std::span<const float> logits, const SamplingParams& params, int32_t token);

 private:
  // scores_ := the logits of the tokens that may be chosen, -inf elsewhere.
  void set_scores(std::span<const float> logits, std::span<const uint32_t> allowed);
  void mark(const Watermark& watermark, std::span<const int32_t> tokens);
  void penalise(const SamplingParams& params, const SamplingHistory& history);
  int32_t choose(const SamplingParams& params, uint64_t position);
  void sort_candidates(const SamplingParams& params);
  void cut_by_mass(const SamplingParams& params);
  void cut_typical(float mass);
  void softmax_candidates();
  void report(SampledToken& token, std::span<const float> scores, const SamplingParams& params);

  struct Candidate {
    int32_t id;
    float score;
    double p;
  };
  GreenList green_;
  std::vector<float> scores_;
  std::vector<Candidate> candidates_;
  std::vector<int32_t> touched_, counts_;  // counts_ [V] is zero between calls
};

}  // namespace lorry
