// One forward pass: what goes in and what comes out. All sequences of a batch are concatenated,
// ragged; there is no difference between a prefill, a chunk of one, a decoded token and drafts to
// verify: a sequence brings n >= 1 new tokens. The spans need to live only as long as the call.
//
// T tokens, S sequences, R rows with logits, D model dim, V vocabulary.
#pragma once
#include <cstdint>
#include <span>

#include "lorry/tensor.h"

namespace lorry {

// best: the place of each row's largest logit alone, where the logits themselves are not looked at.
enum class Want : uint8_t { logits, hidden, best };

struct ForwardInput {
  std::span<const int32_t> input_ids;     // [T], 0 <= id < V
  std::span<const int32_t> position_ids;  // [T], position in its sequence, consecutive within one
  // [T]: the sequence length that length-dependent RoPE (dynamic NTK, longrope) uses for the row:
  // the prompt's length for prompt tokens, position + 1 for generated ones. Others ignore it.
  std::span<const int32_t> rope_lens;
  std::span<const int32_t> cu_seqlens;    // [S + 1]: sequence s brings rows [cu[s], cu[s+1])
  std::span<const int32_t> kv_lens;       // [S]: tokens in the cache after this pass
  std::span<const int32_t> block_tables;  // [S, max_blocks]: cache blocks of 16 tokens
  int32_t max_blocks = 0;
  std::span<const int32_t> slots;       // [T]: block * 16 + offset; < 0: do not store
  std::span<const int32_t> adapters;    // [S]: the sequence's adapter, -1: none
  std::span<const int32_t> logit_rows;  // [R]: rows to compute logits (or hidden states) for
  Want want = Want::logits;
};

// Views into the model's own memory, valid until its next forward pass.
struct ForwardOutput {
  Tensor logits;  // [R, V] f32, when asked for
  // [R] i32: the token with the largest logit of each row, the lowest on ties; -1 where a logit is
  // NaN or +inf, or none is above -inf. Empty when hidden states were asked for.
  Tensor best;
  Tensor hidden;  // [R, D] after the final norm, when asked for
  // [R, heads, V] f32: what the Medusa heads of each row's adapter guess, head i the token i + 2
  // places after the row; `heads` is the most that an adapter of these rows has. 0 for heads that
  // the row's adapter lacks. Empty: none has any, or hidden states were asked for.
  Tensor speculative;
};

// Limits that size the model's scratch memory; a pass beyond them is a programmer's error.
struct ForwardLimits {
  int32_t max_tokens = 512;      // T
  int32_t max_sequences = 64;    // S
  int32_t max_logit_rows = 128;  // R
  int32_t max_lora_rank = 64;
  int32_t max_medusa_heads = 0;  // of an adapter; 0: adapters with Medusa heads are refused
};

}  // namespace lorry
