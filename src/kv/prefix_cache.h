// PrefixCache: which block holds which content. A content is 16 tokens and the hash of all that
// comes before them, so that equal contents have equal keys and values (same weights, same
// adapter). Hashes are SHA-256, and a hit compares the content too: a collision is a miss, never
// wrong KV. Integers only; belongs to the BlockPool, which knows whether a block is in use.
#pragma once
#include <array>
#include <cstdint>
#include <cstring>
#include <unordered_map>
#include <vector>

#include "base/sha256.h"
#include "ops/ops.h"

namespace lorry {

struct BlockContent {
  // The hash of the block before; of a first block the sequence's salt, which is a digest too.
  Digest parent{};
  std::array<int32_t, kBlockTokens> tokens{};
  friend bool operator==(const BlockContent&, const BlockContent&) = default;
};

Digest hash_of(const BlockContent& content);

class PrefixCache {
 public:
  explicit PrefixCache(int32_t n_blocks);

  // The block that holds `content`, or -1.
  int32_t find(const Digest& hash, const BlockContent& content) const;
  // False, and nothing changes, when another block is registered under `hash`.
  // Requires: `block` is not registered.
  bool insert(int32_t block, const Digest& hash, const BlockContent& content);
  // Forgets what `block` holds, if it is registered.
  void erase(int32_t block);
  bool contains(int32_t block) const { return entries_[static_cast<size_t>(block)].registered; }
  int32_t size() const { return static_cast<int32_t>(blocks_.size()); }
  void check_integrity() const;

 private:
  struct Entry {
    Digest hash{};
    BlockContent content;
    bool registered = false;
  };
  struct FirstBytes {  // of a SHA-256: as good as any hash of it
    size_t operator()(const Digest& d) const {
      size_t h = 0;
      std::memcpy(&h, d.data(), sizeof h);
      return h;
    }
  };

  std::vector<Entry> entries_;  // by block
  std::unordered_map<Digest, int32_t, FirstBytes> blocks_;
};

}  // namespace lorry
