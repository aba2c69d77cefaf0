// BlockTables: grows and shrinks the block tables of sequences: prefix-cache hits, new blocks,
// registration of computed ones, sliding out of the window, giving back. No policy: it never
// decides who gets a block. Engine thread only.
//
// Between calls a table covers exactly the computed and planned positions of its sequence.
#pragma once
#include <cstdint>

#include "engine/sequence.h"
#include "kv/block_pool.h"

namespace lorry {

constexpr int32_t blocks_for(int32_t n_tokens) {
  return (n_tokens + kBlockTokens - 1) / kBlockTokens;
}

class BlockTables {
 public:
  struct Hits {
    int32_t n_blocks = 0;
    int32_t n_free = 0;  // of these, blocks that no sequence uses: taking them uses up free ones
  };

  // window: 0 for none, else position p sees p - window + 1 ... p.
  BlockTables(int32_t n_blocks, int32_t window, bool prefix_cache);

  // The most blocks that a sequence of n_tokens needs at a time, computed row by row.
  int32_t most_blocks(int32_t n_tokens) const;
  // Cached blocks that continue the table of `seq`; at least one certain token is left to compute.
  // None unless the table ends at a full block.
  Hits find_hits(Sequence& seq) const;
  // Takes them: the table and n_computed grow.
  void take_hits(Sequence& seq);
  // The position up to which the table of `seq` could grow with the free blocks (exclusive).
  int32_t reach(const Sequence& seq) const;
  // New blocks for positions below `end`. Requires: end <= reach(seq).
  void extend(Sequence& seq, int32_t end);
  // After n_computed grew: registers full blocks of certain tokens, frees those out of the window.
  void settle(Sequence& seq);
  // Drops the tokens from n_tokens on, all of them drafts; the drafts before become certain.
  void truncate(Sequence& seq, int32_t n_tokens);
  // Gives all blocks back; nothing of `seq` is computed any more. Drafts go.
  void clear(Sequence& seq);

  const BlockPool& pool() const { return pool_; }
  // Aborts when the table of `seq`, with n_planned positions more, is not as described above.
  void check(const Sequence& seq, int32_t n_planned) const;

 private:
  bool caches(const Sequence& seq) const { return prefix_cache_ && seq.use_prefix_cache; }
  // The cached block that holds block `index` of `seq`, or -1.
  int32_t find(Sequence& seq, int32_t index) const;
  void slide(Sequence& seq);
  int32_t n_out_of_window(const Sequence& seq) const;

  BlockPool pool_;
  const int32_t window_;
  const bool prefix_cache_;
};

}  // namespace lorry
