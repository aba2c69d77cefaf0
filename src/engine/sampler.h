// Sampler: from one row of logits to one token, by the request's own parameters and random numbers.
// The order is LoRAX's: bias, repetition, frequency and presence penalties, temperature, top-k,
// top-p, min-p, typical, choice.
#pragma once
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "engine/sampling.h"

namespace lorry {

// Tokens of one sequence as the penalties see them.
struct SamplingHistory {
  std::span<const int32_t> tokens;  // prompt and output
  size_t n_prompt = 0;
};

class Sampler {
 public:
  // One per thread: owns the working memory for a vocabulary.
  explicit Sampler(int64_t vocab);

  // `position` is that of the token to be chosen. Empty when the logits hold a NaN or nothing but
  // -inf: there is no meaningful choice.
  std::optional<SampledToken> sample(std::span<const float> logits, const SamplingParams& params,
                                     const SamplingHistory& history, uint64_t position);

  // The log-probability of a given token, with the alternatives that params ask for.
  SampledToken score(std::span<const float> logits, const SamplingParams& params, int32_t token);

 private:
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
  std::vector<float> scores_;
  std::vector<Candidate> candidates_;
  std::vector<int32_t> touched_, counts_;  // counts_ [V] is zero between calls
};

}  // namespace lorry
