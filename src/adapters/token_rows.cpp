#include "adapters/token_rows.h"

#include <algorithm>

namespace lorry {

const PeftConfig::TokenList* TokenRows::list_of(const std::string& module, SiteKind kind) const {
  for (const PeftConfig::TokenList& list : config_.token_lists()) {
    if (list.module.empty() ? kind == SiteKind::embed : module.ends_with(list.module)) {
      return &list;
    }
  }
  return nullptr;
}

void TokenRows::place(const std::string& module, const SiteInfo* site, int32_t tensor) {
  const SiteKind kind = site != nullptr ? site->site.kind : SiteKind::q;
  if (kind != SiteKind::embed && kind != SiteKind::lm_head) {
    list_.bad(tensor,
              fmt::format("this model has no embedding {} whose rows could be replaced", module));
  }
  const SiteInfo& s = *site;
  const PeftConfig::TokenList* list = list_of(module, kind);
  if (list == nullptr) {
    list_.bad(tensor,
              fmt::format("trainable_token_indices of adapter_config.json names no tokens of {}",
                          module));
  }
  used_.insert(list);
  const bool embedding = kind == SiteKind::embed;
  const int64_t vocab = embedding ? s.in : s.out;
  const auto n = static_cast<int64_t>(list->ids.size());
  for (const int32_t id : list->ids) {
    if (id < vocab) continue;
    fail(Code::bad_file, "{}: trainable_token_indices names token {}; the model has {}",
         config_.path(), id, vocab);
  }
  const int64_t dim = embedding ? s.out : s.in;
  list_.expect(tensor, {n, dim}, fmt::format(" ({} tokens by trainable_token_indices)", n));
  MappedPatch& patch = patches_.at(s.site, module);
  patch.tokens = list->ids;
  patch.token_rows = patches_.piece(
      {tensor, embedding ? LoraPiece::Form::table : LoraPiece::Form::matrix, n, dim, 0, dim, 1});
}

void TokenRows::check_lists() const {
  const auto& lists = config_.token_lists();
  for (const PeftConfig::TokenList& list : lists) {
    if (used_.contains(&list)) continue;
    const bool follows = table_.tied_head && std::any_of(lists.begin(), lists.end(), [&](auto& l) {
                           return used_.contains(&l) && l.ids == list.ids;
                         });
    if (follows) continue;
    fail(Code::bad_file,
         "{}: trainable_token_indices names {} tokens{}{}, but {} holds no rows for them",
         config_.path(), list.ids.size(), list.module.empty() ? "" : " of ", list.module,
         list_.file);
  }
}

void TokenRows::tie() {
  const MappedPatch* embed = patches_.find({SiteKind::embed});
  if (embed == nullptr || embed->tokens.empty()) return;
  LoraPiece rows = patches_.piece_at(embed->token_rows);
  rows.form = LoraPiece::Form::matrix;
  MappedPatch& head = patches_.at({SiteKind::lm_head}, embed->module);
  if (!head.tokens.empty()) return;
  head.tokens = embed->tokens;
  head.token_rows = patches_.piece(rows);
}

}  // namespace lorry
