#include "engine/block_tables.h"

#include <algorithm>
#include <span>

#include "base/error.h"

namespace lorry {

namespace {

int32_t size_of_table(const Sequence& seq) { return static_cast<int32_t>(seq.blocks.size()); }

// Positions that are computed and will not be taken back.
int32_t n_settled(const Sequence& seq) { return std::min(seq.n_computed, seq.n_certain()); }

// The chain of hashes goes on with the adapter. Where it begins is part of the content: another
// sequence may have the same tokens there and begin within the block at another one.
Digest with_adapter(const Digest& parent, const Sequence& seq) {
  Sha256 hash;
  hash.update(std::as_bytes(std::span(parent)));
  hash.update(std::as_bytes(std::span(seq.adapter_salt)));
  hash.update_value(seq.adapter_from);
  return hash.finish();
}

// Requires: block `index` is full of certain tokens, and the blocks before it are hashed.
BlockContent content_of(const Sequence& seq, int32_t index) {
  BlockContent content;
  content.parent = index == 0 ? seq.cache_salt : seq.hashes[static_cast<size_t>(index) - 1];
  if (index == seq.adapter_from / kBlockTokens) content.parent = with_adapter(content.parent, seq);
  std::copy_n(seq.tokens.begin() + index * kBlockTokens, kBlockTokens, content.tokens.begin());
  return content;
}

const Digest& hash_at(Sequence& seq, int32_t index, const BlockContent& content) {
  if (seq.hashes.size() == static_cast<size_t>(index)) seq.hashes.push_back(hash_of(content));
  return seq.hashes[static_cast<size_t>(index)];
}

}  // namespace

BlockTables::BlockTables(int32_t n_blocks, int32_t window, bool prefix_cache)
    : pool_(n_blocks), window_(window), prefix_cache_(prefix_cache) {
  LORRY_CHECK(window >= 0, "window {}", window);
}

int32_t BlockTables::most_blocks(int32_t n_tokens) const {
  if (window_ == 0) return blocks_for(n_tokens);
  // `window` positions that begin with the last one of a block.
  return std::min(blocks_for(n_tokens), 1 + blocks_for(window_ - 1));
}

int32_t BlockTables::find(Sequence& seq, int32_t index) const {
  const BlockContent content = content_of(seq, index);
  return pool_.find(hash_at(seq, index, content), content);
}

BlockTables::Hits BlockTables::find_hits(Sequence& seq) const {
  Hits hits;
  if (!caches(seq) || seq.wants_prompt_logits || seq.n_computed % kBlockTokens != 0) return hits;
  const int32_t first = seq.n_computed / kBlockTokens;
  const int32_t last = (seq.n_certain() - 1) / kBlockTokens;
  for (int32_t i = first; i < last; ++i) {
    const int32_t block = find(seq, i);
    if (block < 0) break;
    ++hits.n_blocks;
    if (pool_.references(block) == 0) ++hits.n_free;
  }
  return hits;
}

void BlockTables::take_hits(Sequence& seq) {
  const Hits hits = find_hits(seq);
  if (hits.n_blocks == 0) return;
  for (int32_t i = 0; i < hits.n_blocks; ++i) {
    const int32_t block = find(seq, size_of_table(seq));
    pool_.retain(block);
    seq.blocks.push_back(block);
  }
  seq.n_computed += hits.n_blocks * kBlockTokens;
  seq.n_hit += hits.n_blocks * kBlockTokens;
  seq.n_registered = size_of_table(seq);
  slide(seq);
}

int32_t BlockTables::reach(const Sequence& seq) const {
  const int64_t blocks = int64_t{size_of_table(seq)} + pool_.n_free();
  return static_cast<int32_t>(std::min<int64_t>(blocks * kBlockTokens, INT32_MAX));
}

void BlockTables::extend(Sequence& seq, int32_t end) {
  while (size_of_table(seq) < blocks_for(end)) seq.blocks.push_back(pool_.allocate());
}

void BlockTables::settle(Sequence& seq) {
  if (caches(seq)) {
    for (; seq.n_registered < n_settled(seq) / kBlockTokens; ++seq.n_registered) {
      const BlockContent content = content_of(seq, seq.n_registered);
      pool_.commit(seq.blocks[static_cast<size_t>(seq.n_registered)],
                   hash_at(seq, seq.n_registered, content), content);
    }
  }
  slide(seq);
}

int32_t BlockTables::n_out_of_window(const Sequence& seq) const {
  if (window_ == 0) return 0;
  const int32_t first_visible = n_settled(seq) - window_ + 1;  // to the next position computed
  return std::max(first_visible, 0) / kBlockTokens;
}

void BlockTables::slide(Sequence& seq) {
  for (; seq.n_slid < n_out_of_window(seq); ++seq.n_slid) {
    int32_t& block = seq.blocks[static_cast<size_t>(seq.n_slid)];
    pool_.release(block);
    block = -1;
  }
}

void BlockTables::truncate(Sequence& seq, int32_t n_tokens) {
  LORRY_CHECK(n_tokens >= seq.n_certain() && n_tokens <= static_cast<int32_t>(seq.tokens.size()),
              "truncate to {} of {} tokens, {} of them drafts", n_tokens, seq.tokens.size(),
              seq.n_draft);
  seq.tokens.resize(static_cast<size_t>(n_tokens));
  seq.n_draft = 0;
  seq.n_computed = std::min(seq.n_computed, n_tokens);
  seq.n_scored = std::min(seq.n_scored, n_tokens);
  while (size_of_table(seq) > blocks_for(seq.n_computed)) {
    pool_.release(seq.blocks.back());
    seq.blocks.pop_back();
  }
  settle(seq);
}

void BlockTables::clear(Sequence& seq) {
  seq.tokens.resize(static_cast<size_t>(seq.n_certain()));
  seq.n_draft = 0;
  // The last block first: a chain loses its end before its beginning, without which the rest
  // cannot be found.
  for (; !seq.blocks.empty(); seq.blocks.pop_back()) {
    if (seq.blocks.back() >= 0) pool_.release(seq.blocks.back());
  }
  seq.n_computed = 0;
  seq.n_hit = 0;
  seq.n_registered = 0;
  seq.n_slid = 0;
}

void BlockTables::check(const Sequence& seq, int32_t n_planned) const {
  LORRY_CHECK(size_of_table(seq) == blocks_for(seq.n_computed + n_planned),
              "sequence {}: {} blocks for {} + {} positions", seq.id, seq.blocks.size(),
              seq.n_computed, n_planned);
  LORRY_CHECK(seq.n_computed + n_planned <= static_cast<int32_t>(seq.tokens.size()),
              "sequence {}: {} + {} positions of {} tokens", seq.id, seq.n_computed, n_planned,
              seq.tokens.size());
  LORRY_CHECK(seq.n_slid <= n_out_of_window(seq) && seq.n_slid <= size_of_table(seq),
              "sequence {}: {} blocks slid out", seq.id, seq.n_slid);
  for (int32_t i = 0; i < size_of_table(seq); ++i) {
    const int32_t block = seq.blocks[static_cast<size_t>(i)];
    LORRY_CHECK((block < 0) == (i < seq.n_slid), "sequence {}: block {} is {}", seq.id, i, block);
    // What may still be written belongs to one sequence and is not in the cache.
    if (block < 0 || (i + 1) * kBlockTokens <= seq.n_computed) continue;
    LORRY_CHECK(pool_.references(block) == 1 && !pool_.is_cached(block),
                "sequence {}: block {} is written and shared", seq.id, block);
  }
}

}  // namespace lorry
