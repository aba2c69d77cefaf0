#include "engine/batch.h"

#include <algorithm>

#include "base/error.h"
#include "ops/ops.h"

namespace lorry {

BatchBuilder::BatchBuilder(const ForwardLimits& limits) {
  const auto tokens = static_cast<size_t>(limits.max_tokens);
  const auto sequences = static_cast<size_t>(limits.max_sequences);
  for (auto* v : {&ids_, &positions_, &rope_lens_, &slots_}) v->reserve(tokens);
  for (auto* v : {&kv_lens_, &adapters_}) v->reserve(sequences);
  sequences_.reserve(sequences);
  rows_.reserve(sequences);
  cu_seqlens_.reserve(sequences + 1);
  logit_rows_.reserve(static_cast<size_t>(limits.max_logit_rows));
  entries_.reserve(sequences);
  views_.reserve(sequences);
}

void BatchBuilder::clear() {
  entries_.clear();
  views_.clear();
}

void BatchBuilder::add(const Chunk& chunk, const AdapterView& adapter) {
  BatchEntry entry{&chunk, -1, 0};
  if (!adapter.patches.empty() && chunk.end() > chunk.seq->adapter_from) {
    // Equal adapters share their memory, so the address is the identity.
    const auto at = std::find_if(views_.begin(), views_.end(), [&](const AdapterView& v) {
      return v.patches.data() == adapter.patches.data();
    });
    entry.adapter = static_cast<int32_t>(at - views_.begin());
    if (at == views_.end()) views_.push_back(adapter);
  }
  entries_.push_back(entry);
}

const ForwardInput& BatchBuilder::build(Want want) {
  LORRY_CHECK(!entries_.empty());
  for (auto* v : {&ids_, &positions_, &rope_lens_, &slots_, &kv_lens_, &adapters_, &logit_rows_}) {
    v->clear();
  }
  sequences_.clear();
  rows_.clear();
  cu_seqlens_.assign(1, 0);
  std::stable_sort(entries_.begin(), entries_.end(),
                   [](const BatchEntry& a, const BatchEntry& b) { return a.adapter < b.adapter; });
  for (const BatchEntry& e : entries_) {
    rows_.push_back({append(*e.chunk->seq, e.chunk->first, middle_of(e), -1), 0});
  }
  for (size_t i = 0; i < entries_.size(); ++i) {
    const BatchEntry& e = entries_[i];
    rows_[i][1] = append(*e.chunk->seq, middle_of(e), e.chunk->end(), e.adapter);
  }
  append_logit_rows();
  append_tables();
  input_.input_ids = ids_;
  input_.position_ids = positions_;
  input_.rope_lens = rope_lens_;
  input_.cu_seqlens = cu_seqlens_;
  input_.kv_lens = kv_lens_;
  input_.block_tables = tables_;
  input_.slots = slots_;
  input_.adapters = adapters_;
  input_.logit_rows = logit_rows_;
  input_.want = want;
  return input_;
}

int32_t BatchBuilder::middle_of(const BatchEntry& entry) {
  const Chunk& chunk = *entry.chunk;
  if (entry.adapter < 0) return chunk.end();
  return std::clamp(chunk.seq->adapter_from, chunk.first, chunk.end());
}

int32_t BatchBuilder::append(const Sequence& seq, int32_t first, int32_t end, int32_t adapter) {
  const auto row = static_cast<int32_t>(ids_.size());
  if (first == end) return row;
  for (int32_t p = first; p < end; ++p) {
    ids_.push_back(seq.tokens[static_cast<size_t>(p)]);
    positions_.push_back(p);
    rope_lens_.push_back(p < seq.n_prompt ? seq.n_prompt : p + 1);
    const int32_t block = seq.blocks[static_cast<size_t>(p / kBlockTokens)];
    LORRY_CHECK(block >= 0, "position {} of sequence {} has no block", p, seq.id);
    slots_.push_back(block * kBlockTokens + p % kBlockTokens);
  }
  cu_seqlens_.push_back(static_cast<int32_t>(ids_.size()));
  kv_lens_.push_back(end);
  adapters_.push_back(adapter);
  sequences_.push_back(&seq);
  return row;
}

void BatchBuilder::append_logit_rows() {
  for (size_t i = 0; i < entries_.size(); ++i) {
    const Chunk& chunk = *entries_[i].chunk;
    const int32_t middle = middle_of(entries_[i]);
    entries_[i].first_logit_row = static_cast<int64_t>(logit_rows_.size());
    for (int32_t p = chunk.end() - chunk.n_logits; p < chunk.end(); ++p) {
      logit_rows_.push_back(p < middle ? rows_[i][0] + p - chunk.first : rows_[i][1] + p - middle);
    }
  }
}

void BatchBuilder::append_tables() {
  size_t widest = 0;
  for (const Sequence* seq : sequences_) widest = std::max(widest, seq->blocks.size());
  tables_.assign(widest * sequences_.size(), -1);
  for (size_t i = 0; i < sequences_.size(); ++i) {
    const auto& table = sequences_[i]->blocks;
    std::copy(table.begin(), table.end(),
              tables_.begin() + static_cast<std::ptrdiff_t>(i * widest));
  }
  input_.max_blocks = static_cast<int32_t>(widest);
}

}  // namespace lorry
