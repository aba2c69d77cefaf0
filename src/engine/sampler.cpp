#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "engine/philox.h"
#include "ops/scores.h"

namespace lorry {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

}  // namespace

Sampler::Sampler(int64_t vocab) : green_(vocab), counts_(static_cast<size_t>(vocab), 0) {
  scores_.reserve(static_cast<size_t>(vocab));
  candidates_.reserve(static_cast<size_t>(vocab));
}

void Sampler::set_scores(std::span<const float> logits, std::span<const uint32_t> allowed) {
  scores_.assign(logits.begin(), logits.end());
  if (allowed.empty()) return;
  for (size_t i = 0; i < scores_.size(); ++i) {
    if ((allowed[i / 32] >> (i % 32) & 1U) == 0) scores_[i] = -kInfinity;
  }
}

void Sampler::mark(const Watermark& watermark, std::span<const int32_t> tokens) {
  LORRY_DCHECK(!tokens.empty());
  for (const int32_t id : green_.after(tokens.back(), watermark.gamma)) {
    scores_[static_cast<size_t>(id)] += watermark.delta;
  }
}

void Sampler::penalise(const SamplingParams& p, const SamplingHistory& history) {
  for (const auto& [id, bias] : p.logit_bias) scores_[static_cast<size_t>(id)] += bias;
  if (p.repetition_penalty != 1.0F) {
    // Beyond these bounds, which already decide alone, scores become infinite or NaN.
    const float penalty = std::clamp(p.repetition_penalty, 1e-20F, 1e20F);
    for (const int32_t id : history.tokens) {
      int32_t& seen = counts_[static_cast<size_t>(id)];
      if (seen++ != 0) continue;
      touched_.push_back(id);
      float& s = scores_[static_cast<size_t>(id)];
      s = s < 0 ? s * penalty : s / penalty;
    }
    for (const int32_t id : touched_) counts_[static_cast<size_t>(id)] = 0;
    touched_.clear();
  }
  if (p.frequency_penalty == 0 && p.presence_penalty == 0) return;
  for (const int32_t id : history.tokens.subspan(history.n_prompt)) {
    if (counts_[static_cast<size_t>(id)]++ == 0) touched_.push_back(id);
  }
  for (const int32_t id : touched_) {
    int32_t& count = counts_[static_cast<size_t>(id)];
    scores_[static_cast<size_t>(id)] -=
        static_cast<float>(count) * p.frequency_penalty + p.presence_penalty;
    count = 0;
  }
  touched_.clear();
}

// The top_k (with the ties of the k-th), by falling score, ties by id.
void Sampler::sort_candidates(const SamplingParams& p) {
  const auto before = [](const Candidate& a, const Candidate& b) {
    return a.score != b.score ? a.score > b.score : a.id < b.id;
  };
  candidates_.clear();
  for (size_t i = 0; i < scores_.size(); ++i) {
    if (scores_[i] > -kInfinity) {
      candidates_.push_back({static_cast<int32_t>(i), scores_[i], 0});
    }
  }
  const auto k = static_cast<size_t>(p.top_k);
  if (p.top_k > 0 && k < candidates_.size()) {
    const auto kth = candidates_.begin() + (p.top_k - 1);
    std::nth_element(candidates_.begin(), kth, candidates_.end(), before);
    const float floor = kth->score;
    std::erase_if(candidates_, [floor](const Candidate& c) { return c.score < floor; });
  }
  // Without a cut any fixed order gives the same distribution: that of the ids is free.
  const bool cut = p.top_p < 1.0F || p.min_p > 0.0F || p.typical_p < 1.0F;
  if (cut) std::sort(candidates_.begin(), candidates_.end(), before);
}

void Sampler::softmax_candidates() {
  float highest = candidates_.front().score;
  for (const Candidate& c : candidates_) highest = std::max(highest, c.score);
  const double top = static_cast<double>(highest);
  double sum = 0;
  for (Candidate& c : candidates_) {
    c.p = std::exp(static_cast<double>(c.score) - top);
    sum += c.p;
  }
  for (Candidate& c : candidates_) c.p /= sum;
}

void Sampler::cut_by_mass(const SamplingParams& p) {
  if (p.top_p < 1.0F) {
    double mass = 0;
    size_t n = 0;
    while (n < candidates_.size() && mass < static_cast<double>(p.top_p)) {
      mass += candidates_[n++].p;
    }
    candidates_.resize(std::max<size_t>(n, 1));
    softmax_candidates();
  }
  if (p.min_p > 0.0F) {
    const double floor = candidates_.front().p * static_cast<double>(p.min_p);
    while (candidates_.size() > 1 && candidates_.back().p < floor) candidates_.pop_back();
    softmax_candidates();
  }
}

// Keeps the tokens whose surprise is nearest to the entropy until they hold `mass`
// (Meister et al., "Locally typical sampling").
void Sampler::cut_typical(float mass) {
  double entropy = 0;
  for (const Candidate& c : candidates_) {
    if (c.p > 0) entropy -= c.p * std::log(c.p);
  }
  const auto distance = [entropy](const Candidate& c) {
    return std::abs(-std::log(c.p) - entropy);
  };
  std::stable_sort(
      candidates_.begin(), candidates_.end(),
      [&](const Candidate& a, const Candidate& b) { return distance(a) < distance(b); });
  double sum = 0;
  size_t n = 0;
  while (n < candidates_.size() && sum < static_cast<double>(mass)) sum += candidates_[n++].p;
  candidates_.resize(std::max<size_t>(n, 1));
  std::sort(candidates_.begin(), candidates_.end(), [](const Candidate& a, const Candidate& b) {
    return a.score != b.score ? a.score > b.score : a.id < b.id;
  });
  softmax_candidates();
}

int32_t Sampler::choose(const SamplingParams& p, uint64_t position) {
  sort_candidates(p);
  softmax_candidates();
  cut_by_mass(p);
  if (p.typical_p < 1.0F) cut_typical(p.typical_p);
  const double u = philox_uniform(p.seed, position);
  double sum = 0;
  for (const Candidate& c : candidates_) {
    sum += c.p;
    if (u < sum) return c.id;
  }
  return candidates_.back().id;  // rounding left the last sum a hair below u
}

void Sampler::report(SampledToken& token, std::span<const float> scores, const SamplingParams& p) {
  const double norm = log_sum_exp(scores);
  const auto logprob = [&](int32_t id) {
    return static_cast<float>(static_cast<double>(scores[static_cast<size_t>(id)]) - norm);
  };
  token.logprob = logprob(token.id);
  if (p.alternatives <= 0) return;
  candidates_.clear();
  for (size_t i = 0; i < scores.size(); ++i) {
    if (scores[i] > -kInfinity) candidates_.push_back({static_cast<int32_t>(i), scores[i], 0});
  }
  const auto n = std::min<int64_t>(p.alternatives, static_cast<int64_t>(candidates_.size()));
  std::partial_sort(candidates_.begin(), candidates_.begin() + n, candidates_.end(),
                    [](const Candidate& a, const Candidate& b) {
                      return a.score != b.score ? a.score > b.score : a.id < b.id;
                    });
  for (int64_t i = 0; i < n; ++i) {
    const int32_t id = candidates_[static_cast<size_t>(i)].id;
    token.alternatives.push_back({id, logprob(id)});
  }
}

std::optional<SampledToken> Sampler::sample(std::span<const float> logits,
                                            const SamplingParams& params,
                                            const SamplingHistory& history, uint64_t position) {
  SampledToken token;
  if (!params.sample && !params.changes_scores() && history.allowed.empty()) {
    token.id = arg_max(logits);
    if (token.id < 0) return std::nullopt;
    if (params.logprobs) report(token, logits, params);
    return token;
  }
  set_scores(logits, history.allowed);
  if (params.watermark) mark(*params.watermark, history.tokens);
  penalise(params, history);
  token.id = arg_max(scores_);
  if (token.id < 0) return std::nullopt;
  bool raw = params.raw_logprobs;
  if (params.sample) {
    bool overflow = false;
    if (params.temperature != 1.0F) {
      for (float& s : scores_) s /= params.temperature;
      // A tiny temperature overflows to infinity: then the largest score is the only choice.
      overflow = arg_max(scores_) < 0;
    }
    if (!overflow) token.id = choose(params, position);
    raw |= overflow;
  }
  if (!params.logprobs) return token;
  if (raw && !history.allowed.empty()) set_scores(logits, history.allowed);
  report(token, raw && history.allowed.empty() ? logits : scores_, params);
  return token;
}

SampledToken Sampler::score(std::span<const float> logits, const SamplingParams& params,
                            int32_t id) {
  SampledToken token;
  token.id = id;
  report(token, logits, params);
  return token;
}

}  // namespace lorry
