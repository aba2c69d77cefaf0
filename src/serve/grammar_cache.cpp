#include "serve/grammar_cache.h"

#include <iterator>
#include <utility>

namespace lorry {

std::shared_ptr<const Grammar> GrammarCache::compiled(const GrammarText& grammar) {
  std::string key = std::to_string(static_cast<int>(grammar.kind)) + grammar.text;
  if (auto known = find(key)) return known;
  // Outside of the lock; two that come at once may both compile.
  auto fresh = std::make_shared<const Grammar>(tokenizer_, grammar.kind, grammar.text);
  keep(std::move(key), fresh);
  return fresh;
}

std::shared_ptr<const Grammar> GrammarCache::find(const std::string& key) {
  std::lock_guard lock(mutex_);
  const auto found = by_key_.find(key);
  if (found == by_key_.end()) return nullptr;
  entries_.splice(entries_.begin(), entries_, found->second);
  return found->second->grammar;
}

void GrammarCache::keep(std::string key, std::shared_ptr<const Grammar> grammar) {
  std::list<Entry> dropped;  // freed outside of the lock
  std::lock_guard lock(mutex_);
  const size_t bytes = grammar->bytes() + 2 * key.size();
  if (bytes > capacity_ || by_key_.contains(key)) return;
  while (bytes_ + bytes > capacity_) {
    bytes_ -= entries_.back().bytes;
    by_key_.erase(entries_.back().key);
    dropped.splice(dropped.begin(), entries_, std::prev(entries_.end()));
  }
  entries_.push_front({std::move(key), std::move(grammar), bytes});
  by_key_.emplace(entries_.front().key, entries_.begin());
  bytes_ += bytes;
}

size_t GrammarCache::bytes() const {
  std::lock_guard lock(mutex_);
  return bytes_;
}

size_t GrammarCache::size() const {
  std::lock_guard lock(mutex_);
  return entries_.size();
}

}  // namespace lorry
