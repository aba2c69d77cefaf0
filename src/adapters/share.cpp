#include "adapters/share.h"

#include <algorithm>
#include <map>
#include <utility>

namespace lorry {

namespace {

LoraPiece columns_of(LoraPiece p, const Range& r) {
  p.offset += r.first * p.col_stride;
  p.cols = r.count;
  return p;
}

LoraPiece rows_of(LoraPiece p, const std::vector<Range>& ranges) {
  if (ranges.size() == 1) {
    p.offset += ranges[0].first * p.row_stride;
    p.rows = ranges[0].count;
    return p;
  }
  p.row_ranges = ranges;
  p.rows = 0;
  for (const Range& r : ranges) p.rows += r.count;
  return p;
}

class Narrowing {
 public:
  explicit Narrowing(const LoraMap& all) : all_(all) {}

  void add(MappedPatch p, const SiteShare& share) {
    const bool embedding = p.site.kind == SiteKind::embed;
    if (p.a >= 0) {
      // The embedding's A has a row for each token.
      p.a = piece(p.a, [&](const LoraPiece& a) {
        return embedding ? rows_of(a, {share.in}) : columns_of(a, share.in);
      });
      p.b = piece(p.b, [&](const LoraPiece& b) { return rows_of(b, share.out); });
    }
    if (p.weight >= 0) {
      p.weight = piece(p.weight, [&](const LoraPiece& w) {
        if (is_norm(p.site.kind)) return w;
        return embedding ? rows_of(w, {share.in}) : columns_of(rows_of(w, share.out), share.in);
      });
    }
    narrow_tokens(p, embedding ? share.in : share.out[0]);
    if (p.rank == 0 && p.weight < 0 && p.tokens.empty()) return;
    p.in = share.in.count;
    p.out = share.n_out();
    map_.patches.push_back(std::move(p));
  }

  LoraMap take() { return std::move(map_); }

 private:
  // Patches that share a piece share what becomes of it: experts are narrowed alike.
  template <class F>
  int32_t piece(int32_t of, F&& narrow) {
    LoraPiece p = narrow(all_.pieces[static_cast<size_t>(of)]);
    std::vector<int32_t>& made = by_piece_[of];
    for (const int32_t i : made) {
      if (map_.pieces[static_cast<size_t>(i)] == p) return i;
    }
    map_.pieces.push_back(std::move(p));
    made.push_back(static_cast<int32_t>(map_.pieces.size()) - 1);
    return made.back();
  }

  void narrow_tokens(MappedPatch& p, const Range& vocab) {
    if (p.tokens.empty()) return;
    std::vector<int32_t> ids;
    std::vector<Range> kept;
    for (size_t i = 0; i < p.tokens.size(); ++i) {
      const int64_t id = p.tokens[i] - vocab.first;
      if (id < 0 || id >= vocab.count) continue;
      ids.push_back(static_cast<int32_t>(id));
      kept.push_back({static_cast<int64_t>(i), 1});
    }
    p.tokens = std::move(ids);
    p.token_rows = p.tokens.empty() ? -1 : piece(p.token_rows, [&](const LoraPiece& rows) {
      return rows_of(rows, kept);
    });
  }

  const LoraMap& all_;
  LoraMap map_;
  std::map<int32_t, std::vector<int32_t>> by_piece_;
};

}  // namespace

LoraMap share_of(const LoraMap& all, const AdapterTarget& target, int rank) {
  if (target.ranks == 1) return all;
  Narrowing narrowing(all);
  for (const MappedPatch& p : all.patches) {
    const SiteShare share = target.share(p.site, rank);
    if (!share.empty()) narrowing.add(p, share);
  }
  return narrowing.take();
}

}  // namespace lorry
