// GrammarCache: compiled grammars by their text, the most recently used within a number of bytes.
// Any thread; compiling happens on the caller's.
#pragma once
#include <cstddef>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>

#include "text/constraint.h"
#include "text/tokenizer.h"

namespace lorry {

// What an answer must match, as text.
struct GrammarText {
  GrammarKind kind = GrammarKind::json_schema;
  std::string text;
};

class GrammarCache {
 public:
  // The tokenizer must outlive it.
  GrammarCache(const Tokenizer& tokenizer, size_t capacity_bytes)
      : tokenizer_(tokenizer), capacity_(capacity_bytes) {}

  // Throws Error(invalid_argument) when the grammar is refused; that is not remembered. One that is
  // larger than the cache is compiled and not kept.
  std::shared_ptr<const Grammar> compiled(const GrammarText& grammar);

  size_t bytes() const;
  size_t size() const;  // grammars

 private:
  struct Entry {
    std::string key;
    std::shared_ptr<const Grammar> grammar;
    size_t bytes = 0;
  };

  std::shared_ptr<const Grammar> find(const std::string& key);
  void keep(std::string key, std::shared_ptr<const Grammar> grammar);

  const Tokenizer& tokenizer_;
  const size_t capacity_;
  mutable std::mutex mutex_;
  std::list<Entry> entries_;                                                 // the newest first
  std::unordered_map<std::string_view, std::list<Entry>::iterator> by_key_;  // views of entries
  size_t bytes_ = 0;
};

}  // namespace lorry
