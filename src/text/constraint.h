// Constrained decoding: which tokens may come next so that the output matches a JSON schema, a
// regular expression or a Lark grammar. One per sequence, used by one thread at a time. It keeps
// what it needs of the tokenizer.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "text/tokenizer.h"

struct LorryConstraint;

namespace lorry {

enum class GrammarKind { json_schema, regex, lark };

class Constraint {
 public:
  // Throws Error(invalid_argument) when the grammar is refused (wrong, or over a limit of size,
  // nesting or work); constructing one is therefore how a grammar is validated.
  Constraint(const Tokenizer& tokenizer, GrammarKind kind, std::string_view grammar);

  // Bit i % 32 of words[i / 32] = token i may come next; the EOS ids are among them when the output
  // may end here. Words past the vocabulary are cleared. Throws Error(invalid_argument) when the
  // grammar needs too much work here; the constraint is then unusable.
  void mask(std::span<uint32_t> words);
  // Appends a token. Throws Error(invalid_argument) when the mask does not allow it.
  void commit(int32_t id);

  bool accepting() const { return accepting_; }  // the output so far is complete
  bool finished() const { return finished_; }    // and nothing can follow

 private:
  void advance(std::span<const int32_t> ids);

  struct Deleter {
    void operator()(LorryConstraint* constraint) const;
  };
  std::unique_ptr<LorryConstraint, Deleter> handle_;
  bool accepting_ = false;
  bool finished_ = false;
};

}  // namespace lorry
