#include "cli/report.h"

#include <algorithm>

#include <fmt/format.h>

#include "adapters/arena.h"
#include "adapters/packing.h"
#include "base/system.h"
#include "engine/memory_plan.h"

namespace lorry {

namespace {

bool is_attention(SiteKind k) {
  return k == SiteKind::q || k == SiteKind::k || k == SiteKind::v || k == SiteKind::qkv ||
         k == SiteKind::o;
}

bool is_expert(SiteKind k) {
  return k == SiteKind::gate || k == SiteKind::up || k == SiteKind::down;
}

// Usual ranks that are admitted, and the largest.
std::vector<int32_t> ranks_to_tell(int32_t largest) {
  std::vector<int32_t> ranks;
  for (const int32_t rank : {8, 16, 64}) {
    if (rank < largest) ranks.push_back(rank);
  }
  ranks.push_back(largest);
  return ranks;
}

std::string size(int64_t bytes) { return format_bytes(static_cast<size_t>(bytes)); }
std::string size(size_t bytes) { return format_bytes(bytes); }

}  // namespace

int64_t lora_bytes(const SiteTable& sites, const Ops& ops, int32_t rank, bool all_linears) {
  size_t bytes = 0;
  std::vector<bool> seen(static_cast<size_t>(sites.index.size()));
  for (const SiteInfo& s : sites.sites) {
    const SiteKind k = s.site.kind;
    if (!is_attention(k) && !(all_linears && is_expert(k))) continue;
    const auto place = static_cast<size_t>(sites.index(s.site));
    if (seen[place]) continue;  // it has several names
    seen[place] = true;
    bytes +=
        pack_aligned(ops.lora_a_bytes(rank, s.in)) + pack_aligned(ops.lora_b_bytes(s.out, rank));
  }
  return static_cast<int64_t>(bytes);
}

FitReport fit_report(const EngineOptions& o, const Spec& spec, const SiteTable& sites,
                     const Ops& ops, const MemoryPlan& plan) {
  FitReport r;
  r.memory = plan;
  r.nodes = o.topology;
  r.longest = std::min(longest_sequence(o, spec), plan.kv_tokens);
  // What a window has passed is freed.
  const int64_t window = spec.attention.window;
  const int64_t held =
      window > 0 ? std::min<int64_t>(r.longest, window + o.max_batch_tokens) : r.longest;
  r.longest_at_once = plan.kv_tokens / std::max<int64_t>(held, 1);
  r.sequences = o.max_sequences;
  r.requests = o.max_requests;
  if (o.comm && o.comm->size() > 1) return r;
  for (const int32_t rank : ranks_to_tell(o.max_lora_rank)) {
    for (const bool all : {false, true}) {
      const int64_t bytes = lora_bytes(sites, ops, rank, all);
      if (bytes == 0) continue;
      const int64_t fit = static_cast<int64_t>(plan.adapters) / ExtentArena::rounded(bytes);
      r.adapters.push_back({rank, all, bytes, fit});
    }
  }
  return r;
}

std::string FitReport::to_text() const {
  const MemoryPlan& m = memory;
  std::string text = fmt::format(
      "weights    {} (--quantize)\n"
      "KV cache   {} for {} tokens (--kv-tokens, --kv-cache-dtype)\n"
      "           {} requests of the longest, {} tokens (--max-total-tokens)\n"
      "requests   {} in one step (--max-num-seqs), {} in work or waiting "
      "(--max-concurrent-requests)\n"
      "adapters   {} (--adapter-memory)",
      size(m.weights), size(m.kv_cache), m.kv_tokens, longest_at_once, longest, sequences, requests,
      size(m.adapters));
  for (const Adapters& a : adapters) {
    text += fmt::format("\n           {} of rank {} on {}, {} each", a.fit, a.rank,
                        a.all_linears ? "attention and experts" : "attention", size(a.bytes));
  }
  text +=
      fmt::format("\nstep       {} (--max-batch-prefill-tokens, --max-lora-rank)\navailable  {}",
                  size(m.scratch), size(m.available));
  if (nodes.size() > 1) {
    text += fmt::format("\nNUMA       {} nodes: {} (--numa)", nodes.size(), to_string(nodes));
  }
  return text;
}

json::object FitReport::to_json() const {
  json::array of_rank;
  for (const Adapters& a : adapters) {
    of_rank.push_back(json::object{{"rank", a.rank},
                                   {"on", a.all_linears ? "attention and experts" : "attention"},
                                   {"bytes", a.bytes},
                                   {"fit", a.fit}});
  }
  return {{"memory", memory_json(memory)},
          {"numa_nodes", std::max<size_t>(nodes.size(), 1)},
          {"longest_request", longest},
          {"longest_requests_at_once", longest_at_once},
          {"requests_in_step", sequences},
          {"requests_at_once", requests},
          {"adapters", std::move(of_rank)},
          {"flags",
           {{"weights", "--quantize"},
            {"kv_cache", "--kv-tokens, --kv-cache-dtype"},
            {"longest_request", "--max-total-tokens"},
            {"requests_in_step", "--max-num-seqs"},
            {"requests_at_once", "--max-concurrent-requests"},
            {"adapters", "--adapter-memory"},
            {"scratch", "--max-batch-prefill-tokens, --max-lora-rank"}}}};
}

json::object memory_json(const MemoryPlan& m) {
  return {{"weights", m.weights},    {"kv_cache", m.kv_cache},           {"kv_tokens", m.kv_tokens},
          {"adapters", m.adapters},  {"adapters_host", m.adapters_host}, {"scratch", m.scratch},
          {"available", m.available}};
}

}  // namespace lorry
