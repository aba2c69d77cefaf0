#include "adapters/residency.h"

#include <algorithm>

#include "base/error.h"

namespace lorry {

Residency::Residency(const Options& options)
    : options_(options),
      arenas_{ExtentArena(options.host_bytes), ExtentArena(options.device_bytes)},
      cycle_time_(options.cycle_time) {
  LORRY_CHECK(options.max_active >= 1, "max_active is {}", options.max_active);
  counts_.host.size = arena(Tier::host).size();
  counts_.device.size = arena(Tier::device).size();
}

bool Residency::fits(int64_t bytes) const {
  return ExtentArena::rounded(bytes) <= arena(Tier::device).size();
}

bool Residency::via_host(const Item& item) const { return item.bytes <= arena(Tier::host).size(); }

bool Residency::is_nowhere(const Item& item) const {
  return item.place(Tier::host) == Place::absent && item.place(Tier::device) == Place::absent;
}

int64_t Residency::offset(int32_t item, AdapterTier tier) const {
  return arena(tier).offset(at(item).extent(tier));
}

// ---- items ----

int32_t Residency::add(int64_t bytes) {
  LORRY_CHECK(bytes > 0 && fits(bytes), "an image of {} bytes", bytes);
  const int32_t i = items_.take();
  at(i).bytes = ExtentArena::rounded(bytes);
  at(i).used_last = ++n_uses_;
  return i;
}

void Residency::remove(int32_t i) {
  Item& item = at(i);
  LORRY_CHECK(items_.is_taken(i) && !item.removed && !item.wanted, "item {} is not to be removed",
              i);
  std::erase(lost_, i);
  item.removed = true;
  if (!item.busy) free_item(i);
}

void Residency::free_item(int32_t i) {
  for (const Tier tier : kTiers) {
    if (at(i).place(tier) != Place::absent) drop_image(i, tier);
  }
  update(i);
  items_.give_back(i);
}

void Residency::drop_image(int32_t i, Tier tier) {
  Item& item = at(i);
  arena(tier).give_back(item.extent(tier));
  if (item.place(tier) == Place::full) --counts(tier).items;
  item.extents[index(tier)] = -1;
  item.places[index(tier)] = Place::absent;
  if (tier == Tier::device) item.fresh = false;
}

bool Residency::is_idle(const Item& item, Tier tier) const {
  if (item.place(tier) != Place::full || item.busy) return false;
  const Tier other = tier == Tier::host ? Tier::device : Tier::host;
  if (item.kept && item.wanted && item.place(other) != Place::full) return false;
  return tier == Tier::host ? item.line != Line::device : item.pins == 0 && !item.fresh;
}

void Residency::update(int32_t i) {
  Item& item = at(i);
  for (const Tier tier : kTiers) {
    const size_t t = index(tier);
    const uint64_t as = is_idle(item, tier) ? item.used_last : 0;
    if (item.idle_as[t] == as) continue;
    if (item.idle_as[t] != 0) {
      idle_[t].erase({item.idle_as[t], i});
      idle_bytes_[t] -= item.bytes;
    }
    if (as != 0) {
      idle_[t].insert({as, i});
      idle_bytes_[t] += item.bytes;
    }
    item.idle_as[t] = as;
  }
  if (item.fresh) {
    fresh_.insert(i);
  } else {
    fresh_.erase(i);
  }
}

// ---- claims and pins ----

bool Residency::others_wait() const {
  return !lines_[index(Tier::device)].empty() ||
         (counts_.active == options_.max_active && !fresh_.empty());
}

void Residency::want(int32_t i, Time now) {
  Item& item = at(i);
  item.wanted = true;
  if (item.busy || item.line != Line::none || item.pins > 0) return update(i);
  if (!is_in(i, Tier::device)) {
    join_line(i);
  } else if (!others_wait()) {
    begin_turn(i, now);
  } else if (now >= item.turn_end) {
    item.fresh = false;
    join_line(i);
  } else {
    item.fresh = true;
  }
  update(i);
}

void Residency::unwant(int32_t i) {
  Item& item = at(i);
  LORRY_CHECK(item.wanted && item.pins == 0, "item {} is pinned {} times", i, item.pins);
  if (item.line != Line::none) leave_line(i);
  item.wanted = item.fresh = item.waited = false;
  item.used_last = ++n_uses_;
  if (is_nowhere(item)) lost_.push_back(i);
  update(i);
}

void Residency::keep(int32_t i, bool on, Time now) {
  Item& item = at(i);
  item.kept = on;
  // It cannot be evicted while it stands in line, so nobody before it could get its room.
  const bool in_the_way = on && is_in(i, Tier::device) && !is_in(i, Tier::host) && item.pins == 0;
  if (in_the_way && item.line != Line::none) {
    leave_line(i);
    begin_turn(i, now);
  }
  update(i);
}

bool Residency::pin(int32_t i) {
  Item& item = at(i);
  LORRY_CHECK(items_.is_taken(i) && item.wanted, "item {} is not wanted", i);
  if (!is_in(i, Tier::device) || item.line != Line::none) return false;
  if (item.pins == 0 && counts_.active == options_.max_active) {
    item.fresh = true;
    update(i);
    return false;
  }
  if (item.pins++ == 0) {
    ++counts_.active;
    turns_.insert({item.turn_end, i});
  }
  item.fresh = false;
  update(i);
  return true;
}

void Residency::unpin(int32_t i) {
  Item& item = at(i);
  LORRY_CHECK(item.pins > 0, "item {} is not pinned", i);
  if (--item.pins > 0) return;
  --counts_.active;
  turns_.erase({item.turn_end, i});
  item.used_last = ++n_uses_;
  update(i);
}

void Residency::begin_turn(int32_t i, Time now) {
  Item& item = at(i);
  LORRY_CHECK(item.pins == 0, "item {} is pinned {} times", i, item.pins);
  item.turn_end = now + std::max(cycle_time_, kLoadShare * item.load);
  item.fresh = item.wanted;
  item.waited = false;
  update(i);
}

// ---- lines ----

Residency::Line Residency::line_for(const Item& item) const {
  return is_nowhere(item) && via_host(item) ? Line::host : Line::device;
}

void Residency::join_line(int32_t i) {
  Item& item = at(i);
  item.line = line_for(item);
  item.ticket = ++n_tickets_;
  line(item.line).emplace(item.ticket, i);
  update(i);
}

void Residency::leave_line(int32_t i) {
  Item& item = at(i);
  line(item.line).erase(item.ticket);
  item.line = Line::none;
  update(i);
}

std::optional<Residency::Work> Residency::next(Time now) {
  blocked_ = false;
  if (std::optional<Work> work = serve_line(Tier::device, now)) return work;
  return serve_line(Tier::host, now);
}

std::optional<Residency::Work> Residency::serve_line(Tier tier, Time now) {
  auto& waiting = lines_[index(tier)];
  while (!waiting.empty()) {
    const int32_t i = waiting.begin()->second;
    if (is_in(i, Tier::device)) {  // had to step aside, and nobody needed its room
      leave_line(i);
      begin_turn(i, now);
      continue;
    }
    if (std::optional<Work> work = start(i, tier, now)) return work;
    if (!at(i).waited) ++counts_.waits;
    at(i).waited = true;
    if (tier == Tier::device) blocked_ = true;
    return std::nullopt;
  }
  return std::nullopt;
}

// ---- room ----

std::optional<Residency::Work> Residency::start(int32_t i, Tier tier, Time now) {
  const int64_t bytes = at(i).bytes;
  const auto& idle = idle_[index(tier)];
  if (arena(tier).free() + idle_bytes_[index(tier)] < bytes) return std::nullopt;
  while (true) {
    if (const auto extent = arena(tier).take(bytes, i)) {
      at(i).load_begin = now;
      return begin_fill(i, tier, *extent);
    }
    if (std::optional<Work> move = move_together(bytes, tier)) return move;
    if (idle.empty()) return std::nullopt;
    evict(idle.begin()->second, tier);
  }
}

std::optional<Residency::Work> Residency::move_together(int64_t bytes, Tier tier) {
  const std::vector<ExtentArena::Move> moves = arena(tier).plan_moves(bytes, options_.move_bytes);
  if (moves.empty()) return std::nullopt;
  int64_t cost = 0;
  for (const ExtentArena::Move& m : moves) cost += m.bytes;
  if (cost > options_.move_bytes && !idle_[index(tier)].empty()) return std::nullopt;
  const ExtentArena::Move& m = moves.front();
  arena(tier).moved(m);
  ++counts(tier).moves;
  counts(tier).moved_bytes += m.bytes;
  return Work{Work::Kind::move, m.owner, tier, m.from, m.to, m.bytes};
}

Residency::Work Residency::begin_fill(int32_t i, Tier tier, int32_t extent) {
  Item& item = at(i);
  const bool copy = tier == Tier::device && is_in(i, Tier::host);
  item.extents[index(tier)] = extent;
  item.places[index(tier)] = Place::filling;
  item.busy = true;
  leave_line(i);
  Work work{Work::Kind::read, i, tier, 0, arena(tier).offset(extent), item.bytes};
  if (copy) {
    arena(Tier::host).fix(item.extent(Tier::host));
    work.kind = Work::Kind::copy;
    work.from = offset(i, Tier::host);
  }
  return work;
}

void Residency::finished(int32_t i, bool ok, Time now) {
  Item& item = at(i);
  LORRY_CHECK(items_.is_taken(i) && item.busy, "nothing was done to item {}", i);
  item.busy = false;
  const Tier tier = item.place(Tier::device) == Place::filling ? Tier::device : Tier::host;
  if (!ok || item.removed) {
    item.wanted = false;
    return free_item(i);
  }
  item.places[index(tier)] = Place::full;
  for (const Tier t : kTiers) {
    if (item.place(t) == Place::full) arena(t).settle(item.extent(t));
  }
  ++counts(tier).items;
  ++counts(tier).fills;
  counts(tier).filled_bytes += item.bytes;
  item.used_last = ++n_uses_;
  if (tier == Tier::device) {
    item.load = now - item.load_begin;
    begin_turn(i, now);
  } else if (item.wanted) {
    join_line(i);
  }
  update(i);
}

void Residency::evict(int32_t i, Tier tier) {
  Item& item = at(i);
  drop_image(i, tier);
  ++counts(tier).evictions;
  if (!item.wanted) {
    if (is_nowhere(item)) lost_.push_back(i);
  } else if (!is_in(i, Tier::device) && item.line != line_for(item)) {
    if (item.line != Line::none) leave_line(i);
    join_line(i);
  }
  update(i);
}

std::optional<int32_t> Residency::rotate(Time now) {
  const bool capped = counts_.active == options_.max_active && !fresh_.empty();
  if (!blocked_ && !capped) return std::nullopt;
  for (const auto& [turn_end, i] : turns_) {
    if (now < turn_end) return std::nullopt;
    if (at(i).line != Line::none) continue;  // named before, its pins are still to be given up
    if (at(i).kept && !is_in(i, Tier::host)) continue;
    blocked_ = false;
    ++counts_.rotations;
    join_line(i);
    return i;
  }
  return std::nullopt;
}

// ---- views ----

Residency::Counts Residency::counts() const {
  Counts c = counts_;
  c.host.used = arena(Tier::host).size() - arena(Tier::host).free();
  c.device.used = arena(Tier::device).size() - arena(Tier::device).free();
  return c;
}

}  // namespace lorry
