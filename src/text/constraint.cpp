#include "text/constraint.h"

#include "text/ffi_call.h"

namespace lorry {

void ConstraintDeleter::operator()(LorryConstraint* constraint) const {
  lorry_constraint_free(constraint);
}

Grammar::Grammar(const Tokenizer& tokenizer, GrammarKind kind, std::string_view text) {
  LorryGrammar input{};
  switch (kind) {
    case GrammarKind::json_schema:
      input.kind = LORRY_JSON_SCHEMA;
      break;
    case GrammarKind::regex:
      input.kind = LORRY_REGEX;
      break;
    case GrammarKind::lark:
      input.kind = LORRY_LARK;
      break;
  }
  input.text = ffi::bytes(text);
  input.text_len = text.size();
  input.eos = ffi::ids(tokenizer.eos_ids());
  input.n_eos = tokenizer.eos_ids().size();
  LorryConstraint* handle = nullptr;
  char* error = nullptr;
  int32_t status = lorry_constraint_create(tokenizer.handle(), &input, &handle, &error);
  ffi::check(status, error, Code::invalid_argument, "the grammar is refused");
  handle_.reset(handle);
}

size_t Grammar::bytes() const { return lorry_constraint_bytes(handle_.get()); }

Constraint::Constraint(const Grammar& grammar) {
  LorryConstraint* handle = nullptr;
  char* error = nullptr;
  const int32_t status = lorry_constraint_copy(grammar.handle_.get(), &handle, &error);
  ffi::check(status, error, Code::internal, "the grammar cannot be copied");
  handle_.reset(handle);
  advance({});
}

void Constraint::mask(std::span<uint32_t> words) {
  char* error = nullptr;
  int32_t status = lorry_constraint_mask(handle_.get(), words.data(), words.size(), &error);
  ffi::check(status, error, Code::invalid_argument, "the grammar cannot go on");
}

void Constraint::commit(int32_t id) { advance({&id, 1}); }

void Constraint::advance(std::span<const int32_t> ids) {
  uint32_t state = 0;
  char* error = nullptr;
  int32_t status =
      lorry_constraint_commit(handle_.get(), ffi::ids(ids), ids.size(), &state, &error);
  ffi::check(status, error, Code::invalid_argument, "the token does not fit the grammar");
  accepting_ = (state & LORRY_CONSTRAINT_ACCEPTING) != 0;
  finished_ = (state & LORRY_CONSTRAINT_FINISHED) != 0;
}

}  // namespace lorry
