#include "engine/memory_plan.h"

#include <algorithm>

#include "base/error.h"
#include "base/system.h"
#include "models/causal_lm.h"
#include "models/loader.h"

namespace lorry {

namespace {

// Left to the system, the page cache of the checkpoint and the server's own small allocations.
constexpr double kReserve = 0.05;

}  // namespace

ForwardLimits forward_limits(const EngineOptions& o) {
  // A chunk in which an activated LoRA begins is two sequences of the pass (engine/batch.h).
  const int32_t sequences = std::min(o.max_batch_tokens, 2 * o.max_sequences);
  return {o.max_batch_tokens, sequences, o.max_logit_rows, o.max_lora_rank, o.max_medusa_heads};
}

int64_t longest_sequence(const EngineOptions& options, const Spec& spec) {
  if (options.max_total_tokens <= 0) return spec.max_positions;
  if (options.max_total_tokens > spec.max_positions) {
    fail(Code::invalid_argument, "--max-total-tokens {} is more than the model's {} positions",
         options.max_total_tokens, spec.max_positions);
  }
  return options.max_total_tokens;
}

MemoryPlan plan_memory(const EngineOptions& o, const ModelShare& share, const Ops& ops,
                       size_t weights, size_t available) {
  const Spec& spec = share.own;
  MemoryPlan plan;
  plan.available = available;
  plan.kv_format = spec.attention.kv;
  plan.weights = weights;
  plan.scratch = CausalLM::scratch_bytes(share, ops, forward_limits(o));
  const auto usable = static_cast<size_t>(static_cast<double>(available) * (1 - kReserve));
  const size_t fixed = plan.weights + plan.scratch;
  if (fixed >= usable) {
    fail(Code::over_capacity,
         "the model needs {} for its weights and {} for a step, but only {} of memory are "
         "available; use --quantize int8 or int4, a smaller model, free memory, or lower "
         "--max-batch-prefill-tokens",
         format_bytes(plan.weights), format_bytes(plan.scratch), format_bytes(available));
  }
  const size_t free = usable - fixed;
  const bool on_device = ops.memory() != nullptr;  // the host tier lies elsewhere
  plan.adapters = o.adapter_memory > 0
                      ? static_cast<size_t>(o.adapter_memory)
                      : static_cast<size_t>(static_cast<double>(free) * o.adapter_memory_fraction);
  plan.adapters_host = static_cast<size_t>(o.adapter_host_memory);
  // Of a rank without heads as if it had one: all ranks count the same blocks.
  AttentionSpec attention = spec.attention;
  if (attention.heads == 0) attention.heads = attention.kv_heads = 1;
  const Tensor block = ops.kv_layout(1, attention);
  const auto block_bytes = static_cast<size_t>(2 * spec.layers * block.shape.size()) *
                           static_cast<size_t>(size_of(block.dtype));
  const int64_t longest = longest_sequence(o, spec);
  if (o.kv_tokens > 0) {
    plan.kv_blocks = (o.kv_tokens + kBlockTokens - 1) / kBlockTokens;
  } else {
    const auto part = static_cast<size_t>(static_cast<double>(free) * o.kv_memory_fraction);
    // More than every sequence of a full batch at its longest could use helps nobody but the
    // prefix cache; twice that is plenty.
    const int64_t most = 2 * o.max_sequences * ((longest + kBlockTokens - 1) / kBlockTokens);
    plan.kv_blocks = std::min<int64_t>(static_cast<int64_t>(part / block_bytes), most);
  }
  plan.kv_tokens = plan.kv_blocks * kBlockTokens;
  plan.kv_cache = static_cast<size_t>(plan.kv_blocks) * block_bytes;
  const size_t host_tier = on_device ? 0 : plan.adapters_host;
  if (plan.kv_blocks < 2 || plan.adapters + host_tier + plan.kv_cache > free) {
    fail(Code::over_capacity,
         "KV cache {} ({} tokens), adapters {} and their host tier {} do not fit in the {} left "
         "beside the model; lower --kv-tokens, --adapter-memory or --adapter-host-memory",
         format_bytes(plan.kv_cache), plan.kv_tokens, format_bytes(plan.adapters),
         format_bytes(plan.adapters_host), format_bytes(free));
  }
  return plan;
}

std::string MemoryPlan::to_text() const {
  return fmt::format(
      "memory: weights {}, KV cache {} ({} tokens{}), adapters {} (host tier {}), step {}; "
      "{} available",
      format_bytes(weights), format_bytes(kv_cache), kv_tokens,
      kv_format == KvFormat::int8 ? " in int8" : "", format_bytes(adapters),
      adapters_host == 0 ? "none" : format_bytes(adapters_host), format_bytes(scratch),
      format_bytes(available));
}

}  // namespace lorry
