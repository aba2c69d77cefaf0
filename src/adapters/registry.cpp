#include "adapters/registry.h"

#include <algorithm>
#include <utility>

#include "adapters/names.h"
#include "base/error.h"

namespace lorry {

namespace {

// Jobs at the loaders at once; further ones wait with the engine, where they can be withdrawn.
constexpr size_t kMaxInFlight = 16;

AdapterRegistry::Options with_clock(AdapterRegistry::Options options) {
  if (!options.now) options.now = [] { return std::chrono::steady_clock::now(); };
  return options;
}

}  // namespace

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

AdapterRegistry::AdapterRegistry(Options options, AdapterTarget target)
    : options_(with_clock(std::move(options))),
      target_(std::move(target)),
      jobs_(kMaxInFlight),
      results_(kMaxInFlight) {
  LORRY_CHECK(options_.loader_threads >= 1, "loader_threads is {}", options_.loader_threads);
  counts_.budget_bytes = options_.budget_bytes;
  for (int i = 0; i < options_.loader_threads; ++i)
    threads_.emplace_back([this] { load_forever(); });
}

AdapterRegistry::~AdapterRegistry() {
  while (jobs_.try_pop()) {
  }
  jobs_.close();
  for (std::thread& t : threads_) t.join();
}

// ---- loader threads ----

void AdapterRegistry::load_forever() {
  while (std::optional<Job> job = jobs_.pop()) {
    Result result = work(*std::move(job));
    LORRY_CHECK(results_.try_push(std::move(result)), "the engine bounds the jobs in flight");
    if (options_.wake) options_.wake();
  }
}

AdapterRegistry::Result AdapterRegistry::work(Job job) const {
  Result result;
  result.version = job.version;
  try {
    if (job.folder) {
      result.adapter = job.folder->read();
    } else {
      const std::string path =
          job.path.empty() ? local_adapter_folder(options_.root, job.name) : job.path;
      result.folder = AdapterFolder::open(path, target_, options_.limits);
    }
  } catch (const Error& e) {
    result.error = e;
  } catch (const std::exception& e) {
    result.error = Error(Code::internal, fmt::format("adapter '{}': {}", job.name, e.what()));
  }
  return result;
}

// ---- names ----

void AdapterRegistry::register_name(const std::string& name, const std::string& path) {
  check_adapter_name(name);
  paths_[name] = path;
  detach(name);
}

bool AdapterRegistry::unregister_name(const std::string& name) {
  if (paths_.erase(name) == 0) return false;
  detach(name);
  return true;
}

void AdapterRegistry::reload(const std::string& name) { detach(name); }

// The name's version, if any, is no longer what new claims get.
void AdapterRegistry::detach(const std::string& name) {
  const auto found = names_.find(name);
  if (found == names_.end()) return;
  const int32_t index = found->second;
  names_.erase(found);
  at(index).current = false;
  std::erase(failures_, index);
  drop_if_unused(index);
}

// ---- claims ----

AdapterHandle AdapterRegistry::acquire(const std::string& name) {
  forget_failures();
  const int32_t index = current_version(name);
  Version& v = at(index);
  ++v.holds;
  if (v.state == AdapterState::ready) ++contents_.at(v.digest).holds;
  send_jobs();
  return {index};
}

int32_t AdapterRegistry::current_version(const std::string& name) {
  if (const auto found = names_.find(name); found != names_.end()) return found->second;
  const int32_t index = new_version(name);
  const auto path = paths_.find(name);
  if (path == paths_.end()) {
    // Refused at once, and not remembered: nothing was tried.
    try {
      check_adapter_name(name);
      if (options_.root.empty()) fail(Code::not_found, "adapter '{}' not found", name);
    } catch (const Error& e) {
      at(index).state = AdapterState::failed;
      at(index).error = e;
      return index;
    }
  }
  Version& v = at(index);
  v.state = AdapterState::loading;
  v.current = true;
  names_[name] = index;
  ++counts_.loads_started;
  unsent_.push_back({index, name, path == paths_.end() ? std::string() : path->second, nullptr});
  return index;
}

int32_t AdapterRegistry::new_version(const std::string& name) {
  int32_t index = static_cast<int32_t>(versions_.size());
  if (free_.empty()) {
    versions_.emplace_back();
  } else {
    index = free_.back();
    free_.pop_back();
  }
  at(index).name = name;
  at(index).used = true;
  return index;
}

AdapterStatus AdapterRegistry::status(AdapterHandle handle) const {
  const Version& v = at(handle.index);
  LORRY_CHECK(v.used && v.holds > 0, "adapter handle {} is not held", handle.index);
  AdapterStatus s;
  s.state = v.state;
  if (v.state == AdapterState::ready) s.adapter = contents_.at(v.digest).adapter.get();
  if (v.state == AdapterState::failed) s.error = &*v.error;
  return s;
}

void AdapterRegistry::release(AdapterHandle handle) {
  Version& v = at(handle.index);
  LORRY_CHECK(v.used && v.holds > 0, "adapter handle {} is not held", handle.index);
  --v.holds;
  if (v.state == AdapterState::ready) {
    Content& c = contents_.at(v.digest);
    if (--c.holds == 0) c.released_at = ++releases_;
  }
  drop_if_unused(handle.index);
  grant();
  send_jobs();
}

// Frees a version that nobody holds and no name needs. One that has not started to load, or that
// waits for room, is needed by its holders alone.
void AdapterRegistry::drop_if_unused(int32_t index) {
  Version& v = at(index);
  if (v.holds > 0) return;
  bool idle = v.state == AdapterState::waiting;
  if (idle) std::erase(waiting_, index);
  if (v.state == AdapterState::loading) {
    idle = std::erase_if(unsent_, [&](const Job& j) { return j.version == index; }) > 0;
    if (!idle) return;  // a loader has it: take() decides
  }
  if (v.current && !idle) return;
  if (v.current) names_.erase(v.name);
  used_ -= v.reserved;
  v = Version{};
  free_.push_back(index);
}

void AdapterRegistry::forget_failures() {
  const auto now = options_.now();
  while (!failures_.empty()) {
    const Version& oldest = at(failures_.front());
    const bool expired = now - oldest.failed_at >= options_.failure_memory;
    if (!expired && failures_.size() <= options_.max_failures) return;
    detach(std::string(oldest.name));
  }
}

// ---- loads ----

void AdapterRegistry::send_jobs() {
  while (!unsent_.empty() && in_flight_ < static_cast<int64_t>(kMaxInFlight)) {
    LORRY_CHECK(jobs_.try_push(std::move(unsent_.front())), "in flight: {}", in_flight_);
    unsent_.pop_front();
    ++in_flight_;
  }
}

void AdapterRegistry::poll() {
  while (std::optional<Result> result = results_.try_pop()) {
    --in_flight_;
    take(*std::move(result));
  }
  forget_failures();
  grant();
  send_jobs();
}

void AdapterRegistry::take(Result result) {
  Version& v = at(result.version);
  if (result.error) return fail_version(result.version, *std::move(result.error));
  if (result.adapter) return finish(result.version, std::move(result.adapter));
  const size_t bytes = result.folder->packed_bytes();
  if (bytes > options_.budget_bytes) {
    return fail_version(
        result.version,
        Error(Code::over_capacity,
              fmt::format("adapter '{}' takes {} bytes of adapter memory, which holds {}", v.name,
                          bytes, options_.budget_bytes)));
  }
  v.state = AdapterState::waiting;
  v.folder = std::move(result.folder);
  waiting_.push_back(result.version);
  drop_if_unused(result.version);
}

void AdapterRegistry::fail_version(int32_t index, Error error) {
  Version& v = at(index);
  used_ -= v.reserved;
  v.reserved = 0;
  v.state = AdapterState::failed;
  v.error = std::move(error);
  v.failed_at = options_.now();
  ++counts_.loads_failed;
  if (v.current) failures_.push_back(index);
  drop_if_unused(index);
}

void AdapterRegistry::finish(int32_t index, std::unique_ptr<Adapter> adapter) {
  Version& v = at(index);
  v.digest = to_hex(adapter->digest());
  v.state = AdapterState::ready;
  ++counts_.loads_done;
  const auto [found, is_new] = contents_.try_emplace(v.digest);
  Content& c = found->second;
  used_ -= v.reserved;
  v.reserved = 0;
  if (is_new) {
    used_ += adapter->bytes();
    c.adapter = std::move(adapter);
  }
  c.holds += v.holds;
  if (c.holds == 0) c.released_at = ++releases_;
  drop_if_unused(index);
}

// ---- room ----

// Strictly first come first served: a large adapter is not starved by small ones behind it.
void AdapterRegistry::grant() {
  while (!waiting_.empty()) {
    const int32_t index = waiting_.front();
    Version& v = at(index);
    if (!make_room(v.folder->packed_bytes())) return;
    waiting_.pop_front();
    v.reserved = v.folder->packed_bytes();
    used_ += v.reserved;
    v.state = AdapterState::loading;
    unsent_.push_back({index, v.name, "", std::move(v.folder)});
  }
}

// Evicts idle contents, the least recently released first, if that makes `bytes` free.
bool AdapterRegistry::make_room(size_t bytes) {
  size_t idle = 0;
  for (const auto& [digest, c] : contents_) idle += c.holds == 0 ? c.adapter->bytes() : 0;
  if (used_ - idle + bytes > options_.budget_bytes) return false;
  while (used_ + bytes > options_.budget_bytes) {
    auto oldest = contents_.end();
    for (auto i = contents_.begin(); i != contents_.end(); ++i) {
      const bool older =
          oldest == contents_.end() || i->second.released_at < oldest->second.released_at;
      if (i->second.holds == 0 && older) oldest = i;
    }
    used_ -= oldest->second.adapter->bytes();
    const std::string digest = oldest->first;
    contents_.erase(oldest);
    ++counts_.evictions;
    for (size_t i = 0; i < versions_.size(); ++i) {
      if (versions_[i].used && versions_[i].digest == digest)
        detach(std::string(versions_[i].name));
    }
  }
  return true;
}

// ---- views ----

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
