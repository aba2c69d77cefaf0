#include "parallel/placement.h"

#include <algorithm>
#include <array>

#include "base/error.h"

namespace lorry {

namespace {

// The largest unit by which all ranks still get nearly the same.
int64_t unit_of(int64_t total, int64_t ranks, int64_t least) {
  for (const int64_t unit : std::array{int64_t{128}, int64_t{64}, int64_t{32}, int64_t{16}}) {
    if (unit % least == 0 && total / unit >= 16 * ranks) return unit;
  }
  return total / least >= ranks ? least : 1;
}

void place_heads(Placement& p, const ModelShape& s) {
  const int64_t group = s.heads / s.kv_heads;
  if (p.ranks <= s.kv_heads) {
    p.kv_heads = part_of(s.kv_heads, p.rank, p.ranks);
    p.heads = {p.kv_heads.first * group, p.kv_heads.count * group};
    return;
  }
  // The ranks of one KV head share its query heads.
  for (int64_t k = 0; k < s.kv_heads; ++k) {
    const Range sharers = part_of(p.ranks, static_cast<int>(k), s.kv_heads);
    if (p.rank >= sharers.first + sharers.count) continue;
    const Range own = part_of(group, p.rank - static_cast<int>(sharers.first), sharers.count);
    p.heads = {k * group + own.first, own.count};
    p.kv_heads = {k, own.count > 0 ? 1 : 0};
    return;
  }
}

void check_fits(const char* what, int64_t have, int ranks) {
  if (have >= ranks) return;
  fail(Code::invalid_argument, "the model has {} {}, too few for {} ranks: use at most {} ranks",
       have, what, ranks, have);
}

}  // namespace

Range part_of(int64_t total, int index, int64_t n, int64_t unit) {
  const int64_t units = (total + unit - 1) / unit;
  const int64_t each = units / n;
  const int64_t more = units % n;
  const int64_t first = index * each + std::min<int64_t>(index, more);
  const int64_t count = each + (index < more ? 1 : 0);
  const int64_t begin = std::min(total, first * unit);
  return {begin, std::min(total, (first + count) * unit) - begin};
}

Range vocab_of(const ModelShape& s, int rank, int ranks) {
  return part_of(s.vocab, rank, ranks, unit_of(s.vocab, ranks, 1));
}

std::vector<Placement> place(const ModelShape& s, int ranks, bool expert_parallel) {
  LORRY_CHECK(ranks >= 1 && s.kv_heads > 0 && s.heads % s.kv_heads == 0, "{} ranks, {} / {} heads",
              ranks, s.heads, s.kv_heads);
  check_fits("entries in its vocabulary", s.vocab, ranks);
  if (expert_parallel) {
    check_fits("experts", s.experts, ranks);
  } else {
    check_fits("columns in an expert", s.ffn, ranks);
  }
  std::vector<Placement> all;
  for (int r = 0; r < ranks; ++r) {
    Placement p{r, ranks, {}, {}, {0, s.ffn}, {0, s.experts}, {}};
    place_heads(p, s);
    if (expert_parallel) {
      p.experts = part_of(s.experts, r, ranks);
    } else {
      p.ffn = part_of(s.ffn, r, ranks, unit_of(s.ffn, ranks, s.ffn_unit));
    }
    p.vocab = vocab_of(s, r, ranks);
    all.push_back(p);
  }
  return all;
}

}  // namespace lorry
