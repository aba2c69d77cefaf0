#include <algorithm>
#include <utility>

#include "adapters/registry.h"
#include "base/error.h"

namespace lorry {

const char* to_string(AdapterState s) {
  switch (s) {
    case AdapterState::absent:
      return "absent";
    case AdapterState::loading:
      return "loading";
    case AdapterState::waiting:
      return "waiting";
    case AdapterState::ready:
      return "ready";
    case AdapterState::failed:
      return "failed";
  }
  return "?";
}

AdapterSnapshot AdapterRegistry::snapshot() const {
  AdapterSnapshot s = counts_;
  s.used_bytes = used_;
  s.resident = static_cast<int64_t>(contents_.size());
  for (const auto& [name, path] : paths_) {
    if (names_.contains(name)) continue;
    AdapterSnapshot::Entry e;
    e.name = name;
    e.registered = true;
    s.entries.push_back(std::move(e));
  }
  for (const auto& [name, index] : names_) {
    const Version& v = at(index);
    AdapterSnapshot::Entry e;
    e.name = name;
    e.state = v.state;
    e.registered = paths_.contains(name);
    e.holds = v.holds;
    if (v.error) e.error = v.error->what();
    if (v.state == AdapterState::ready) {
      const Adapter& a = *contents_.at(v.digest).adapter;
      e.digest = v.digest;
      e.bytes = a.bytes();
      e.max_rank = a.max_rank();
      e.sites = a.sites().size();
      e.base_model = a.base_model();
    }
    s.entries.push_back(std::move(e));
  }
  std::sort(s.entries.begin(), s.entries.end(),
            [](const auto& x, const auto& y) { return x.name < y.name; });
  return s;
}

void AdapterRegistry::check_integrity() const {
  size_t used = 0;
  size_t current = 0;
  std::unordered_map<std::string, int64_t> holds;
  for (const Version& v : versions_) {
    if (!v.used) continue;
    used += v.reserved;
    current += v.current ? 1 : 0;
    if (v.state == AdapterState::ready) holds[v.digest] += v.holds;
    LORRY_CHECK(v.holds > 0 || v.current || v.state == AdapterState::loading, "leaked {}", v.name);
    LORRY_CHECK((v.state == AdapterState::failed) == v.error.has_value(), "{}", v.name);
    LORRY_CHECK(v.state == AdapterState::loading || v.reserved == 0, "{}", v.name);
  }
  for (const auto& [digest, c] : contents_) {
    used += c.adapter->bytes();
    LORRY_CHECK(c.holds == holds[digest], "content {}: {} holds, its versions {}", digest, c.holds,
                holds[digest]);
  }
  LORRY_CHECK(used == used_ && used_ <= options_.budget_bytes, "{} bytes counted, {} kept", used,
              used_);
  LORRY_CHECK(current == names_.size(), "{} current, {} names", current, names_.size());
  for (const auto& [name, index] : names_) {
    LORRY_CHECK(at(index).used && at(index).current && at(index).name == name, "{}", name);
  }
}

}  // namespace lorry
