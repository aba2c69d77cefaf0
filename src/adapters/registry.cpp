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
  if (const auto found = names_.find(name); found != names_.end()) {
    return must_queue(at(found->second)) ? queue_again(found->second) : found->second;
  }
  const int32_t index = new_version(name);
  if (!paths_.contains(name)) {
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
  at(index).current = true;
  names_[name] = index;
  start_load(index);
  return index;
}

void AdapterRegistry::start_load(int32_t index) {
  Version& v = at(index);
  v.state = AdapterState::loading;
  ++counts_.loads_started;
  const auto path = paths_.find(v.name);
  unsent_.push_back({index, v.name, path == paths_.end() ? std::string() : path->second, nullptr});
}

// Without this a stream of claims that overlap would keep an adapter held, and others out, for
// ever.
bool AdapterRegistry::must_queue(const Version& v) const {
  if (v.state != AdapterState::ready || contents_.at(v.digest).holds == 0 || waiting_.empty()) {
    return false;
  }
  return options_.now() - at(waiting_.front()).waiting_since >= options_.cycle_time;
}

// A new version of the same content for the claims from now on, at the end of the queue.
int32_t AdapterRegistry::queue_again(int32_t index) {
  const std::string name = at(index).name;
  const std::string digest = at(index).digest;
  detach(name);
  const int32_t next = new_version(name);
  at(next).digest = digest;
  at(next).current = true;
  names_[name] = next;
  wait_for_room(next);
  return next;
}

void AdapterRegistry::wait_for_room(int32_t index) {
  at(index).state = AdapterState::waiting;
  at(index).waiting_since = options_.now();
  waiting_.push_back(index);
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
  v.folder = std::move(result.folder);
  wait_for_room(result.version);
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
    if (!v.folder) {
      waiting_.pop_front();
      resume(index);
      continue;
    }
    if (!make_room(v.folder->packed_bytes())) return;
    waiting_.pop_front();
    v.reserved = v.folder->packed_bytes();
    used_ += v.reserved;
    v.state = AdapterState::loading;
    unsent_.push_back({index, v.name, "", std::move(v.folder)});
  }
}

// The turn of a version made by queue_again: its content is still there, or is loaded again.
void AdapterRegistry::resume(int32_t index) {
  Version& v = at(index);
  const auto content = contents_.find(v.digest);
  if (content == contents_.end()) {
    v.digest.clear();
    start_load(index);
    return;
  }
  v.state = AdapterState::ready;
  content->second.holds += v.holds;
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

}  // namespace lorry
