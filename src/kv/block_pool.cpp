#include "kv/block_pool.h"

#include "base/error.h"

namespace lorry {

BlockPool::BlockPool(int32_t n_blocks)
    : n_total_(n_blocks), blocks_(static_cast<size_t>(n_blocks) + 1), cache_(n_blocks) {
  // Slot numbers are int32.
  LORRY_CHECK(n_blocks > 0 && n_blocks <= INT32_MAX / kBlockTokens, "{} blocks", n_blocks);
  blocks_.back() = {0, n_total_, n_total_};
  for (int32_t b = 0; b < n_total_; ++b) link(b, n_total_);
}

const BlockPool::Block& BlockPool::at(int32_t block) const {
  LORRY_CHECK(block >= 0 && block < n_total_, "block {} of {}", block, n_total_);
  return blocks_[static_cast<size_t>(block)];
}

void BlockPool::link(int32_t block, int32_t next) {
  const int32_t previous = blocks_[static_cast<size_t>(next)].previous;
  blocks_[static_cast<size_t>(block)].next = next;
  blocks_[static_cast<size_t>(block)].previous = previous;
  blocks_[static_cast<size_t>(previous)].next = block;
  blocks_[static_cast<size_t>(next)].previous = block;
  ++n_free_;
}

void BlockPool::unlink(int32_t block) {
  const Block& b = blocks_[static_cast<size_t>(block)];
  blocks_[static_cast<size_t>(b.previous)].next = b.next;
  blocks_[static_cast<size_t>(b.next)].previous = b.previous;
  --n_free_;
}

int32_t BlockPool::allocate() {
  LORRY_CHECK(n_free_ > 0, "no free block");
  const int32_t block = blocks_.back().next;
  unlink(block);
  if (cache_.contains(block)) {
    cache_.erase(block);
    ++n_evicted_;
  }
  at(block).references = 1;
  return block;
}

void BlockPool::retain(int32_t block) {
  Block& b = at(block);
  if (b.references == 0) {
    LORRY_CHECK(cache_.contains(block), "retain of block {}, free and without content", block);
    unlink(block);
  }
  ++b.references;
}

void BlockPool::release(int32_t block) {
  Block& b = at(block);
  LORRY_CHECK(b.references > 0, "release of block {}, which is free", block);
  if (--b.references > 0) return;
  // Without content: to the front, handed out next while its memory is still warm.
  link(block, cache_.contains(block) ? n_total_ : blocks_.back().next);
}

bool BlockPool::commit(int32_t block, const Digest& hash, const BlockContent& content) {
  LORRY_CHECK(at(block).references > 0, "commit of block {}, which is free", block);
  return cache_.insert(block, hash, content);
}

void BlockPool::check_integrity() const {
  cache_.check_integrity();
  int32_t n_linked = 0;
  bool content_seen = false;
  for (int32_t b = blocks_.back().next; b != n_total_; b = at(b).next) {
    ++n_linked;
    LORRY_CHECK(n_linked <= n_free_, "the ring of free blocks is longer than {}", n_free_);
    LORRY_CHECK(at(b).references == 0, "block {} is free with {} references", b, at(b).references);
    LORRY_CHECK(blocks_[static_cast<size_t>(at(b).next)].previous == b, "broken ring at {}", b);
    LORRY_CHECK(cache_.contains(b) || !content_seen, "block {} without content comes late", b);
    content_seen = cache_.contains(b);
  }
  int32_t n_unused = 0;
  for (int32_t b = 0; b < n_total_; ++b) {
    LORRY_CHECK(at(b).references >= 0, "block {} has {} references", b, at(b).references);
    if (at(b).references == 0) ++n_unused;
  }
  LORRY_CHECK(n_linked == n_free_ && n_unused == n_free_,
              "{} free blocks, {} in the ring, {} unused", n_free_, n_linked, n_unused);
}

}  // namespace lorry
