#include "text/constraint.h"

#include "text/ffi_call.h"

namespace lorry {

void Constraint::Deleter::operator()(LorryConstraint* constraint) const {
  lorry_constraint_free(constraint);
}

Constraint::Constraint(const Tokenizer& tokenizer, GrammarKind kind, std::string_view grammar) {
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
  input.text = ffi::bytes(grammar);
  input.text_len = grammar.size();
  input.eos = ffi::ids(tokenizer.eos_ids());
  input.n_eos = tokenizer.eos_ids().size();
  LorryConstraint* handle = nullptr;
  char* error = nullptr;
  int32_t status = lorry_constraint_create(tokenizer.handle(), &input, &handle, &error);
  ffi::check(status, error, Code::invalid_argument, "the grammar is refused");
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
