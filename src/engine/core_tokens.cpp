// What a pass gave to each sequence: tokens are chosen, kept, reported, and followed by drafts.
#include <algorithm>

#include "base/error.h"
#include "engine/core.h"

namespace lorry {

namespace {

ChosenRows rows_of(const ForwardOutput& out, int64_t first, int64_t n) {
  ChosenRows r;
  if (out.logits) r.logits = rows(out.logits, first, n);
  r.best = {out.best.row<const int32_t>(0) + first, static_cast<size_t>(n)};
  return r;
}

}  // namespace

// Whether nobody looks at the logits of the step.
bool EngineCore::takes_best_alone(const StepPlan& plan) const {
  return std::ranges::all_of(plan.chunks, [&](const Chunk& chunk) {
    if (chunk.n_logits == 0) return true;
    const Active& a = *requests_.at(chunk.seq->id);
    return !a.seq.wants_prompt_logits && !a.request.grammar && a.request.sampling.takes_best();
  });
}

void EngineCore::deliver(const StepPlan& plan, const ForwardOutput& out) {
  choices_.clear();
  scores_.clear();
  std::vector<Active*> computed;  // asked for their prompt alone, and have it
  for (const BatchEntry& entry : batch_.entries()) {
    const Chunk& chunk = *entry.chunk;
    Active& a = *requests_.at(chunk.seq->id);
    if (a.seq.wants_prompt_logits) deliver_prompt(a, entry, out);
    if (chunk.end() < static_cast<int32_t>(a.seq.tokens.size())) continue;
    if (a.request.max_new_tokens == 0) {
      computed.push_back(&a);
    } else {
      const int64_t n_rows = 1 + a.seq.n_draft;
      const int64_t first = entry.first_logit_row + chunk.n_logits - n_rows;
      Choice c{&a, rows_of(out, first, n_rows), {}, {}, {}};
      if (a.view.medusa.shape.heads > 0) c.heads = rows_of_heads(out.speculative, first, n_rows);
      choices_.push_back(std::move(c));
    }
  }
  score_prompts();
  choose_tokens();  // first: the scores are warm, and the compute threads still awake
  scheduler_.commit(plan);
  for (Active* a : computed) finish(*a, FinishReason::length);
  for (Choice& c : choices_) take(c);
}

void EngineCore::deliver_prompt(Active& a, const BatchEntry& entry, const ForwardOutput& out) {
  const Chunk& chunk = *entry.chunk;
  const int32_t first = chunk.end() - chunk.n_logits;  // position of the first row with logits
  const auto row_of = [&](int32_t position) {
    return out.logits.row<const float>(entry.first_logit_row + position - first);
  };
  // Rows computed again after a preemption were delivered before.
  if (a.request.want_logits) {
    const int32_t from = std::max(first, a.logits_reported);
    const int32_t to = std::min(chunk.end(), a.seq.n_prompt);
    if (from < to) a.request.sink->on_logits(from, to - from, row_of(from), out.logits.pitch);
    a.logits_reported = std::max(a.logits_reported, to);
  }
  if (!a.request.prompt_logprobs) return;
  const int32_t end = std::min(chunk.end() + 1, a.seq.n_prompt);
  for (int32_t p = std::max(first + 1, a.prompt_reported); p < end; ++p) {
    scores_.push_back({&a, row_of(p - 1), p, {}});
    a.prompt_reported = p + 1;
  }
}

void EngineCore::score_prompts() {
  const auto vocab = static_cast<size_t>(model_.info.spec.vocab);
  model_.pool->for_each_thread(static_cast<int64_t>(scores_.size()), [&](int64_t i, int thread) {
    Score& s = scores_[static_cast<size_t>(i)];
    s.token = samplers_[static_cast<size_t>(thread)]->score(
        {s.logits, vocab}, s.active->request.sampling,
        s.active->seq.tokens[static_cast<size_t>(s.position)]);
  });
  for (const Score& s : scores_) s.active->request.sink->on_prompt_token({s.token, s.position});
}

// Sequences are independent, so they are spread over the compute threads.
void EngineCore::choose_tokens() {
  const auto n = static_cast<int64_t>(choices_.size());
  model_.pool->for_each_thread(n, [&](int64_t i, int thread) {
    choose(choices_[static_cast<size_t>(i)], *samplers_[static_cast<size_t>(thread)]);
  });
}

void EngineCore::choose(Choice& c, Sampler& sampler) {
  Active& a = *c.active;
  if (a.request.grammar && !a.constraint) {
    try {
      a.constraint.emplace(*a.request.grammar);
    } catch (const Error& e) {
      c.verified.error = e;
      return;
    }
  }
  c.verified =
      verify(sampler, a.request.sampling, a.seq, c.rows, a.constraint ? &*a.constraint : nullptr);
  if (!c.heads || c.verified.ended()) return;
  c.guesses = best_tokens(c.heads, c.verified.n_kept, a.view.medusa.shape.heads);
}

void EngineCore::take(Choice& c) {
  Active& a = *c.active;
  const Verified& got = c.verified;
  if (const int32_t n = a.seq.n_draft; n > 0) {
    counters_.draft_tokens += n;
    counters_.draft_tokens_kept += got.n_kept;
    a.view.medusa.shape.heads > 0 ? a.pace.learn(n, got.n_kept) : a.drafter->learn(n, got.n_kept);
    scheduler_.truncate(a.seq, a.seq.n_certain() + got.n_kept);
  }
  for (size_t i = 0; i < got.tokens.size(); ++i) {
    if (!accept(a, got.tokens[i], i < static_cast<size_t>(got.n_kept))) return;
  }
  if (!got.ended()) return draft(a, c.guesses);
  if (got.dead_end) return finish(a, FinishReason::dead_end);
  if (got.error) return finish(a, FinishReason::failed, got.error);
  ++counters_.nan_total;
  const bool narrow = model_.ops->act() == Dtype::f16;
  finish(a, FinishReason::failed,
         Error(Code::internal,
               "the model's scores hold NaN or infinity: its weights or the "
               "adapter's are broken for this input" +
                   std::string(narrow ? ", or too large for --dtype float16" : "")));
}

// From the heads of its adapter, else from its own past.
void EngineCore::draft(Active& a, std::span<const int32_t> guesses) {
  // The last token of an answer is never computed, so a draft in its place would be for nothing.
  const int32_t room = a.seq.max_tokens - 1 - a.seq.n_certain();
  if (a.view.medusa.shape.heads > 0) {
    a.seq.n_draft = a.pace.length(std::min(static_cast<int32_t>(guesses.size()), room));
    const auto used = guesses.first(static_cast<size_t>(a.seq.n_draft));
    a.seq.tokens.insert(a.seq.tokens.end(), used.begin(), used.end());
    return;
  }
  const int32_t limit = std::min(options_.speculative_tokens, room);
  if (limit <= 0) return;
  if (!a.drafter) a.drafter = std::make_unique<NgramDrafter>(a.seq.max_tokens);
  a.seq.n_draft = a.drafter->propose(a.seq.tokens, limit);
}

bool EngineCore::accept(Active& a, const SampledToken& token, bool was_draft) {
  if (!a.has_token) {
    a.has_token = true;
    a.first_token = Clock::now();
  }
  const int64_t position = int64_t{a.seq.n_prompt} + a.generated;
  if (!was_draft) a.seq.tokens.push_back(token.id);
  ++a.generated;
  a.skipped += was_draft ? 1 : 0;
  ++counters_.generated_tokens;
  a.request.sink->on_token({token, position, was_draft});
  const auto is_in = [&](const std::vector<int32_t>& ids) {
    return std::find(ids.begin(), ids.end(), token.id) != ids.end();
  };
  const bool eos_ends = !a.request.ignore_eos || a.request.grammar != nullptr;
  if ((eos_ends && is_in(eos_ids_)) || is_in(a.request.stop_token_ids)) {
    finish(a, FinishReason::eos_token);
    return false;
  }
  if (a.stops) {
    std::string found = a.stops->push(token.id);
    if (!found.empty()) {
      finish(a, FinishReason::stop_sequence, {}, std::move(found));
      return false;
    }
  }
  if (a.generated < a.request.max_new_tokens) return true;
  finish(a, FinishReason::length);
  return false;
}

}  // namespace lorry
