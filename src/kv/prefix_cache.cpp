#include "kv/prefix_cache.h"

#include <span>

#include "base/error.h"

namespace lorry {

Digest hash_of(const BlockContent& content) {
  static_assert(sizeof(BlockContent) == 32 + 4 * kBlockTokens, "hashed as bytes: no padding");
  Sha256 sha;
  sha.update(std::as_bytes(std::span(&content, 1)));
  return sha.finish();
}

PrefixCache::PrefixCache(int32_t n_blocks) : entries_(static_cast<size_t>(n_blocks)) {
  blocks_.reserve(entries_.size());
}

int32_t PrefixCache::find(const Digest& hash, const BlockContent& content) const {
  const auto it = blocks_.find(hash);
  if (it == blocks_.end()) return -1;
  return entries_[static_cast<size_t>(it->second)].content == content ? it->second : -1;
}

bool PrefixCache::insert(int32_t block, const Digest& hash, const BlockContent& content) {
  Entry& entry = entries_[static_cast<size_t>(block)];
  LORRY_CHECK(!entry.registered, "block {} already holds a registered content", block);
  if (!blocks_.try_emplace(hash, block).second) return false;
  entry = {hash, content, true};
  return true;
}

void PrefixCache::erase(int32_t block) {
  Entry& entry = entries_[static_cast<size_t>(block)];
  if (!entry.registered) return;
  blocks_.erase(entry.hash);
  entry.registered = false;
}

void PrefixCache::check_integrity() const {
  size_t n_registered = 0;
  for (size_t i = 0; i < entries_.size(); ++i) {
    if (!entries_[i].registered) continue;
    ++n_registered;
    const auto it = blocks_.find(entries_[i].hash);
    LORRY_CHECK(it != blocks_.end() && static_cast<size_t>(it->second) == i,
                "block {} is registered under a hash that does not lead to it", i);
  }
  LORRY_CHECK(n_registered == blocks_.size(), "{} blocks registered, {} hashes known", n_registered,
              blocks_.size());
}

}  // namespace lorry
