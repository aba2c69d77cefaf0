// Sequence: the tokens of one running request and where their keys and values are.
// The engine owns it and must keep it at one address from Scheduler::add to Scheduler::remove or
// park.
// Engine thread only.
//
// Tokens are certain (prompt, or sampled) or, at the very end, drafts: `n_draft` guesses that the
// next step verifies. Blocks that are shared or registered hold certain tokens only, so that they
// are never written again.
#pragma once
#include <cstdint>
#include <vector>

#include "base/sha256.h"

namespace lorry {

enum class SequenceState : uint8_t {
  waiting,    // not yet admitted
  running,    // holds blocks
  preempted,  // was running; gave its blocks back and waits to be computed again
  parked,     // taken out of the scheduler until it is added again
  finished,   // removed
};

constexpr int32_t kNoAdapter = INT32_MAX;  // beyond every position

struct Sequence {
  // ---- set by the engine before Scheduler::add ----
  uint64_t id = 0;
  uint64_t tenant = 0;
  uint64_t adapter = 0;  // rows are shared fairly among a tenant's adapters; 0: the base model
  // Sequences share the blocks of equal tokens under equal salts: cache_salt enters the hash of the
  // first block, adapter_salt (the adapter's digest) that of the first one that reaches beyond
  // adapter_from. So what comes before is shared with sequences of the base model.
  Digest cache_salt{}, adapter_salt{};
  // The first position whose rows use the adapter: 0 for all of them, later for an activated LoRA.
  int32_t adapter_from = kNoAdapter;
  std::vector<int32_t> tokens;  // prompt, then generated, then drafts
  int32_t n_prompt = 0;
  int32_t max_tokens = 0;  // prompt and generated together
  // Every row needs logits; takes no hits from the prefix cache, since a hit computes no logits.
  bool wants_prompt_logits = false;
  bool use_prefix_cache = true;  // false: neither reads nor fills it

  // ---- set by the engine between commit and plan; dropped by the scheduler when room is short
  // ----
  int32_t n_draft = 0;

  // ---- kept by the Scheduler; the engine reads ----
  SequenceState state = SequenceState::waiting;
  int32_t n_computed = 0;       // positions whose KV is in the cache
  int32_t n_hit = 0;            // of these, positions found in the prefix cache
  std::vector<int32_t> blocks;  // block of positions [16 i, 16 (i + 1)); -1: slid out of the window

  // ---- the Scheduler's own ----
  int32_t n_scored = 0;        // positions whose logits were delivered (wants_prompt_logits)
  int32_t n_registered = 0;    // leading blocks offered to the prefix cache
  int32_t n_slid = 0;          // leading blocks that slid out of the window
  std::vector<Digest> hashes;  // of leading blocks of certain tokens, as far as needed
  uint64_t arrival = 0;        // order of add(), from 1; 0: not in the scheduler
  uint64_t admitted = 0;  // order of first admission since add(), from 1: kept through preemption
  int32_t chunk = -1;     // its chunk in the current plan

  int32_t n_certain() const { return static_cast<int32_t>(tokens.size()) - n_draft; }
};

}  // namespace lorry
