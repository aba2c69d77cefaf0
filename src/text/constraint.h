// Constrained decoding: which tokens may come next so that the output matches a JSON schema, a
// regular expression or a Lark grammar. A Grammar is compiled once; each sequence gets a Constraint
// of its own from it.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "text/tokenizer.h"

struct LorryConstraint;

namespace lorry {

enum class GrammarKind { json_schema, regex, lark };

struct ConstraintDeleter {
  void operator()(LorryConstraint* constraint) const;
};
using ConstraintHandle = std::unique_ptr<LorryConstraint, ConstraintDeleter>;

// Const and safe to use from many threads at once. It keeps what it needs of the tokenizer.
class Grammar {
 public:
  // Throws Error(invalid_argument) when the grammar is refused: wrong, over a limit of size,
  // nesting or work, or no token of the vocabulary can begin it. The message is one line and names
  // at most the word that is wrong. Blanks between the parts of a JSON text are bounded, unless the
  // schema has an "x-guidance".
  Grammar(const Tokenizer& tokenizer, GrammarKind kind, std::string_view text);

  size_t bytes() const;  // of memory, roughly

 private:
  friend class Constraint;
  ConstraintHandle handle_;
};

// The place of one sequence in a grammar. Used by one thread at a time. The same tokens give the
// same masks and the same errors, whatever other sequences of the grammar do.
class Constraint {
 public:
  explicit Constraint(const Grammar& grammar);

  // Bit i % 32 of words[i / 32] = token i may come next; the EOS ids are among them when the output
  // may end here. Words past the vocabulary are cleared. Throws Error(invalid_argument) when the
  // grammar needs too much work here; the constraint is then unusable.
  void mask(std::span<uint32_t> words);
  // Appends a token. Throws Error(invalid_argument) when the mask does not allow it.
  // Requires: !finished().
  void commit(int32_t id);

  bool accepting() const { return accepting_; }  // the output so far is complete
  bool finished() const { return finished_; }    // and nothing but EOS can follow

 private:
  void advance(std::span<const int32_t> ids);

  ConstraintHandle handle_;
  bool accepting_ = false;
  bool finished_ = false;
};

}  // namespace lorry
