// What the registry says about itself.
#include <algorithm>
#include <map>
#include <utility>

#include "adapters/registry.h"
#include "base/error.h"

namespace lorry {

namespace {

using Entry = AdapterSnapshot::Entry;

double seconds_since(AdapterRegistry::Time then, AdapterRegistry::Time now) {
  return then == AdapterRegistry::Time{} ? -1 : std::chrono::duration<double>(now - then).count();
}

// Versions with one name (of callers with different tokens) are one line; the best state counts.
void add_entry(std::map<std::pair<std::string, AdapterSource>, Entry>& all, Entry e) {
  const auto [found, is_new] = all.try_emplace({e.name, e.source}, e);
  if (is_new) return;
  Entry& sum = found->second;
  e.claims += sum.claims;
  e.hits += sum.hits;
  if (e.idle_seconds < 0 || (sum.idle_seconds >= 0 && sum.idle_seconds < e.idle_seconds)) {
    e.idle_seconds = sum.idle_seconds;
  }
  const auto rank = [](const Entry& x) {
    return x.state == AdapterState::failed ? -1 : static_cast<int>(x.state);
  };
  if (rank(e) >= rank(sum)) {
    sum = std::move(e);
  } else {
    sum.claims = e.claims;
    sum.hits = e.hits;
    sum.idle_seconds = e.idle_seconds;
  }
}

}  // namespace

const char* to_string(AdapterState s) {
  switch (s) {
    case AdapterState::absent:
      return "absent";
    case AdapterState::downloading:
      return "downloading";
    case AdapterState::loading:
      return "loading";
    case AdapterState::host:
      return "host";
    case AdapterState::device:
      return "device";
    case AdapterState::failed:
      return "failed";
  }
  return "?";
}

AdapterState AdapterRegistry::state_of(const Version& v) const {
  if (v.error) return AdapterState::failed;
  if (v.n_fetches > 0) return AdapterState::downloading;
  const int32_t item = v.content < 0 ? -1 : content_at(v.content).item;
  if (item < 0) return AdapterState::loading;
  if (residency_.is_in(item, AdapterTier::device)) return AdapterState::device;
  return residency_.is_in(item, AdapterTier::host) ? AdapterState::host : AdapterState::loading;
}

AdapterSnapshot::Entry AdapterRegistry::entry_of(const Version& v) const {
  Entry e;
  e.name = v.ref.label();
  if (!v.ref.is_merge) e.source = v.ref.parts.front().source;
  e.state = state_of(v);
  e.claims = v.claims;
  e.hits = v.hits;
  e.idle_seconds = seconds_since(v.used_at, now());
  if (v.error) e.error = v.error->what();
  const Adapter* a = v.content < 0 ? nullptr : content_at(v.content).adapter.get();
  if (a != nullptr) {
    e.digest = content_at(v.content).digest;
    e.bytes = a->bytes();
    e.max_rank = a->max_rank();
    e.sites = a->sites().size();
    e.base_model = a->base_model();
  }
  return e;
}

AdapterSnapshot AdapterRegistry::snapshot() const {
  AdapterSnapshot s = counts_;
  s.memory = residency_.counts();
  s.contents = static_cast<int64_t>(by_digest_.size());
  std::map<std::pair<std::string, AdapterSource>, Entry> all;
  for (const auto& [key, index] : current_) add_entry(all, entry_of(at(index)));
  for (const auto& [name, registered] : names_) {
    Entry& e = all[{name, AdapterSource::local}];
    e.name = name;
    e.registered = true;
    e.hits = registered.hits;
    e.idle_seconds = seconds_since(registered.used_at, now());
  }
  for (auto& [key, entry] : all) s.entries.push_back(std::move(entry));
  return s;
}

void AdapterRegistry::check_integrity() const {
  residency_.check_integrity();
  size_t n_current = 0;
  std::vector<int64_t> links(static_cast<size_t>(versions_.end()));
  for (int32_t i = 0; i < versions_.end(); ++i) {
    if (versions_.is_taken(i) && at(i).previous >= 0) ++links[static_cast<size_t>(at(i).previous)];
  }
  for (int32_t index = 0; index < versions_.end(); ++index) {
    if (!versions_.is_taken(index)) continue;
    const Version& v = at(index);
    n_current += v.current ? 1 : 0;
    LORRY_CHECK(!v.current || current_.at(v.key) == index, "{} is not current", v.key);
    LORRY_CHECK(v.links == links[static_cast<size_t>(index)], "{} has {} links", v.key, v.links);
    LORRY_CHECK(v.claims > 0 || v.current || v.links > 0, "leaked {}", v.key);
    LORRY_CHECK(!v.error || (v.content < 0 && v.n_fetches == 0), "{} failed", v.key);
    LORRY_CHECK(v.error || v.content >= 0 || v.n_fetches > 0 || v.links > 0, "{} is stuck", v.key);
    if (v.content < 0) continue;
    const std::vector<int32_t>& of = content_at(v.content).versions;
    LORRY_CHECK(std::count(of.begin(), of.end(), index) == 1, "{} is not in its content", v.key);
  }
  LORRY_CHECK(n_current == current_.size(), "{} current, {} keys", n_current, current_.size());
  check_contents();
}

void AdapterRegistry::check_contents() const {
  size_t n_items = 0;
  size_t n_sources = 0;
  size_t n_read = 0;
  for (int32_t index = 0; index < contents_.end(); ++index) {
    const Content& c = content_at(index);
    if (!contents_.is_taken(index) || c.dropped) continue;
    int64_t claims = 0;
    for (const int32_t v : c.versions) claims += at(v).claims;
    LORRY_CHECK(!c.versions.empty() && claims == c.claims, "content {}: {} claims, {} counted",
                index, claims, c.claims);
    n_sources += c.sources.size();
    for (const std::string& s : c.sources) LORRY_CHECK(by_source_.at(s) == index, "{}", s);
    n_read += c.digest.empty() ? 0 : 1;
    LORRY_CHECK(c.digest.empty() || by_digest_.at(c.digest) == index, "content {}", index);
    const bool queued = std::count(to_open_.begin(), to_open_.end(), index) == 1;
    LORRY_CHECK((c.item >= 0) + (c.item < 0 && c.loading) + queued == 1, "content {} is stuck",
                index);
    if (c.item < 0) continue;
    ++n_items;
    LORRY_CHECK(by_item_.at(c.item) == index, "content {} is not item {}", index, c.item);
  }
  LORRY_CHECK(
      n_items == by_item_.size() && n_sources == by_source_.size() && n_read == by_digest_.size(),
      "{} items, {} sources, {} digests", n_items, n_sources, n_read);
  for (const auto& [key, f] : fetches_) {
    LORRY_CHECK(!f.waiting.empty(), "nobody waits for {}", key);
    for (const auto& [v, part] : f.waiting) LORRY_CHECK(at(v).n_fetches > 0, "{}", key);
  }
}

}  // namespace lorry
