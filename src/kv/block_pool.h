// BlockPool: the KV blocks (16 tokens each) as numbers: who uses them and what they still hold.
// A block is in use (one reference for each block table that names it) or free. A free block keeps
// its registered content until it is handed out again; the least recently used content goes first,
// and only when no free block without content is left.
// Engine thread only. Misuse (a release too many, an empty pool) aborts.
#pragma once
#include <cstdint>
#include <utility>
#include <vector>

#include "kv/prefix_cache.h"

namespace lorry {

class BlockPool {
 public:
  explicit BlockPool(int32_t n_blocks);

  // A block with one reference and no content. Requires: n_free() > 0.
  int32_t allocate();
  // One more reference. Requires: in use, or found (free with content).
  void retain(int32_t block);
  // One reference less. Requires: in use.
  void release(int32_t block);

  // The block that holds `content`, in use or free, or -1. Takes no reference.
  int32_t find(const Digest& hash, const BlockContent& content) const {
    return cache_.find(hash, content);
  }
  // `block` was computed and now holds `content` for as long as it is not handed out again. False
  // when another block holds the same already. Requires: in use, not committed before.
  bool commit(int32_t block, const Digest& hash, const BlockContent& content);

  int32_t n_total() const { return n_total_; }
  int32_t n_free() const { return n_free_; }
  int32_t n_cached() const { return cache_.size(); }  // blocks with content, in use or free
  double usage() const { return 1.0 - static_cast<double>(n_free_) / n_total_; }  // 0 ... 1
  int32_t references(int32_t block) const { return at(block).references; }
  bool is_cached(int32_t block) const { return cache_.contains(block); }
  int64_t n_evicted() const { return n_evicted_; }  // contents forgotten since the start

  // Aborts when counts, lists and contents disagree. O(blocks).
  void check_integrity() const;

 private:
  struct Block {
    int32_t references = 0;
    int32_t next = 0, previous = 0;  // in the ring of free blocks
  };
  const Block& at(int32_t block) const;
  Block& at(int32_t block) { return const_cast<Block&>(std::as_const(*this).at(block)); }
  // Into the ring, before block (or head) `next`.
  void link(int32_t block, int32_t next);
  void unlink(int32_t block);

  const int32_t n_total_;
  int32_t n_free_ = 0;
  int64_t n_evicted_ = 0;
  // blocks_[n_total_] is the ring's head. From it: free blocks without content, then those with
  // content by falling age.
  std::vector<Block> blocks_;
  PrefixCache cache_;
};

}  // namespace lorry
