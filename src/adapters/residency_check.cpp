#include "adapters/residency.h"
#include "base/error.h"

namespace lorry {

void Residency::check_item(int32_t i) const {
  const Item& item = at(i);
  const bool on_device = is_in(i, Tier::device);
  LORRY_CHECK(!item.wanted || on_device || item.busy || item.line != Line::none, "{} is stuck", i);
  LORRY_CHECK(item.pins == 0 || (on_device && item.wanted), "{} is pinned", i);
  LORRY_CHECK(!item.fresh || (on_device && item.wanted && item.pins == 0), "{} is fresh", i);
  LORRY_CHECK(item.fresh == fresh_.contains(i), "{} is fresh", i);
  LORRY_CHECK((item.pins > 0) == turns_.contains({item.turn_end, i}), "{} has its turn", i);
  LORRY_CHECK(!item.removed || item.busy, "{} was not removed", i);
  if (item.line != Line::none) {
    const auto& waiting = lines_[item.line == Line::device ? 1 : 0];
    const auto found = waiting.find(item.ticket);
    LORRY_CHECK(found != waiting.end() && found->second == i, "{} is not in line", i);
    LORRY_CHECK(item.wanted && !item.busy && item.line == line_for(item), "{} is in line", i);
    const bool in_the_way = on_device && item.pins == 0 && item.kept && !is_in(i, Tier::host);
    LORRY_CHECK(!in_the_way, "{} keeps its room and waits", i);
  }
  for (const Tier t : kTiers) {
    const bool idle = is_idle(item, t);
    LORRY_CHECK(idle == (item.idle_as[index(t)] != 0) &&
                    (!idle || item.idle_as[index(t)] == item.used_last),
                "{} is idle: {}", i, idle);
    LORRY_CHECK(!idle || idle_[index(t)].contains({item.used_last, i}), "{} is not listed", i);
    LORRY_CHECK((item.place(t) != Place::absent) == (item.extent(t) >= 0), "{} has no extent", i);
    LORRY_CHECK(item.place(t) != Place::filling || item.busy, "{} is filled by nobody", i);
  }
}

void Residency::check_integrity() const {
  std::array<int64_t, 2> bytes{};
  std::array<int64_t, 2> idle_bytes{};
  std::array<size_t, 2> n_idle{};
  std::array<size_t, 2> n_lined{};
  int64_t active = 0;
  for (int32_t i = 0; i < items_.end(); ++i) {
    if (!items_.is_taken(i)) continue;
    const Item& item = at(i);
    check_item(i);
    active += item.pins > 0 ? 1 : 0;
    if (item.line != Line::none) ++n_lined[item.line == Line::device ? 1 : 0];
    for (const Tier tier : kTiers) {
      const size_t t = index(tier);
      bytes[t] += item.place(tier) != Place::absent ? item.bytes : 0;
      idle_bytes[t] += item.idle_as[t] != 0 ? item.bytes : 0;
      n_idle[t] += item.idle_as[t] != 0 ? 1 : 0;
    }
  }
  LORRY_CHECK(active == counts_.active && turns_.size() == static_cast<size_t>(active) &&
                  active <= options_.max_active,
              "{} items are pinned, {} counted", active, counts_.active);
  for (const Tier tier : kTiers) {
    const size_t t = index(tier);
    arena(tier).check_integrity();
    LORRY_CHECK(bytes[t] == arena(tier).size() - arena(tier).free(), "{} bytes in tier {}",
                bytes[t], t);
    LORRY_CHECK(idle_bytes[t] == idle_bytes_[t] && n_idle[t] == idle_[t].size(), "{} idle bytes",
                idle_bytes[t]);
    LORRY_CHECK(n_lined[t] == lines_[t].size(), "{} in line {}", n_lined[t], t);
  }
}

}  // namespace lorry
