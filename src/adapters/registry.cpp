// Names, versions and claims; registry_load.cpp has what is loaded for them.
#include "adapters/registry.h"

#include <algorithm>
#include <utility>

#include "adapters/merge.h"
#include "adapters/names.h"
#include "base/error.h"

namespace lorry {

namespace {

constexpr size_t kMaxS3Name = 1024;  // S3's own limit for a key

AdapterRegistry::Options with_clock(AdapterRegistry::Options options) {
  if (!options.now) options.now = [] { return std::chrono::steady_clock::now(); };
  return options;
}

Residency::Options residency_options(const AdapterRegistry::Options& o) {
  Residency::Options r;
  r.device_bytes = static_cast<int64_t>(o.device_bytes);
  r.host_bytes = static_cast<int64_t>(o.host_bytes);
  r.max_active = o.max_active;
  r.cycle_time = o.cycle_time;
  r.move_bytes = static_cast<int64_t>(o.move_bytes);
  return r;
}

AdapterLoader::Options loader_options(const AdapterRegistry::Options& o) {
  return {o.root, o.limits, o.loader_threads, o.fetch_threads, o.fetch, o.wake, o.loaded};
}

bool has_part(const AdapterRef& ref, const std::string& local_name) {
  return std::any_of(ref.parts.begin(), ref.parts.end(), [&](const AdapterPart& p) {
    return p.source == AdapterSource::local && p.name == local_name;
  });
}

}  // namespace

AdapterRegistry::AdapterRegistry(Options options, AdapterTarget target)
    : options_(with_clock(std::move(options))),
      slots_(static_cast<size_t>(options_.fetch_threads)),
      device_(target.ops->memory()),
      host_memory_(options_.host_bytes, device_),
      device_memory_(options_.device_bytes, device_),
      residency_(residency_options(options_)),
      loader_(loader_options(options_), target) {
  target.ops->spread(host_memory_.data(), host_memory_.size());
  target.ops->spread(device_memory_.data(), device_memory_.size());
}

AdapterRegistry::~AdapterRegistry() = default;

// ---- names ----

void AdapterRegistry::register_name(const std::string& name, const std::string& path) {
  check_adapter_name(name);
  names_[name].path = path;
  detach_name(name);
}

bool AdapterRegistry::unregister_name(const std::string& name) {
  if (names_.erase(name) == 0) return false;
  detach_name(name);
  return true;
}

void AdapterRegistry::reload(const std::string& name) { detach_name(name); }

void AdapterRegistry::detach_name(const std::string& name) {
  std::vector<int32_t> found;
  for (const auto& [key, index] : current_) {
    if (has_part(at(index).ref, name)) found.push_back(index);
  }
  for (const int32_t index : found) detach(index);
}

// The version is no longer what new claims get.
void AdapterRegistry::detach(int32_t index) {
  Version& v = at(index);
  current_.erase(v.key);
  v.current = false;
  std::erase(failures_, index);
  if (v.content >= 0) update_keep(v.content);
  drop_if_unused(index);
}

// ---- claims ----

void AdapterRegistry::check_ref(const AdapterRef& ref) const {
  LORRY_CHECK(!ref.empty(), "the base model is no adapter");
  if (ref.is_merge) {
    std::vector<float> weights;
    for (const AdapterPart& part : ref.parts) weights.push_back(part.weight);
    check_merge(ref.parts.size(), weights, ref.merge);
  } else if (ref.parts.size() != 1) {
    fail(Code::invalid_argument, "expected one adapter, found {}", ref.parts.size());
  }
  for (const AdapterPart& part : ref.parts) {
    if (part.source == AdapterSource::s3) {
      if (!part.name.empty() && part.name.size() <= kMaxS3Name) continue;
      fail(Code::invalid_argument, "an S3 name of {} bytes: expected 1 to {}", part.name.size(),
           kMaxS3Name);
    }
    check_adapter_name(part.name);
  }
  for (const AdapterPart& part : ref.parts) {
    if (part.source != AdapterSource::local && !options_.fetch) {
      fail(Code::unsupported, "adapter '{}': this server takes no adapters from {}", part.name,
           to_string(part.source));
    }
    if (part.source == AdapterSource::local && options_.root.empty() &&
        !names_.contains(part.name)) {
      fail(Code::not_found, "adapter '{}' not found", part.name);
    }
  }
}

AdapterHandle AdapterRegistry::acquire(const AdapterRef& asked) {
  // A registered name is the operator's: it counts before any source.
  AdapterRef ref = asked;
  for (AdapterPart& part : ref.parts) {
    if (names_.contains(part.name)) part = {part.name, AdapterSource::local, "", part.weight};
  }
  forget_failures();
  const int32_t index = current_version(ref);
  Version& v = at(index);
  ++v.claims;
  ++v.hits;
  v.used_at = now();
  if (!ref.is_merge) {
    const auto name = names_.find(ref.parts.front().name);
    if (name != names_.end() && ref.parts.front().source == AdapterSource::local) {
      ++name->second.hits;
      name->second.used_at = v.used_at;
    }
  }
  if (v.content >= 0) add_claims(v.content, 1);
  return {index};
}

AdapterHandle AdapterRegistry::acquire_folder(const std::string& name, const std::string& path) {
  check_adapter_name(name);
  const int32_t index = new_version(name);
  at(index).path = path;
  at(index).claims = 1;
  attach_content(index);
  return {index};
}

void AdapterRegistry::publish(AdapterHandle handle) {
  const int32_t index = handle.index;
  LORRY_CHECK(status(handle).adapter != nullptr, "adapter {} is not loaded", at(index).key);
  register_name(at(index).ref.parts.front().name, at(index).path);
  at(index).current = true;
  current_[at(index).key] = index;
  if (at(index).content >= 0) update_keep(at(index).content);
}

int32_t AdapterRegistry::current_version(const AdapterRef& ref) {
  const auto found = current_.find(ref.key());
  const int32_t known = found == current_.end() ? -1 : found->second;
  if (known >= 0) {
    const Version& v = at(known);
    const bool fetched = v.fetched_at != Time{} && v.n_fetches == 0 && !v.error;
    if (!fetched || now() - v.fetched_at < options_.fetch_memory) return known;
  }
  const int32_t index = new_version(ref);
  try {
    check_ref(ref);
  } catch (const Error& e) {  // not remembered: nothing was tried
    at(index).error = e;
    return index;
  }
  if (known >= 0) {
    at(index).previous = known;
    ++at(known).links;
    detach(known);
  }
  at(index).current = true;
  current_[at(index).key] = index;
  start_load(index);
  return index;
}

int32_t AdapterRegistry::new_version(AdapterRef ref) {
  const int32_t index = versions_.take();
  Version& v = at(index);
  v.key = ref.key();
  v.folders.resize(ref.parts.size());
  v.ref = std::move(ref);
  return index;
}

const AdapterRegistry::Version& AdapterRegistry::held(AdapterHandle handle) const {
  const Version& v = at(handle.index);
  LORRY_CHECK(versions_.is_taken(handle.index) && v.claims > 0, "adapter handle {} is not held",
              handle.index);
  return v;
}

AdapterStatus AdapterRegistry::status(AdapterHandle handle) const {
  const Version& v = held(handle);
  AdapterStatus s;
  s.state = state_of(v);
  if (v.error) s.error = &*v.error;
  if (v.content >= 0) s.adapter = content_at(v.content).adapter.get();
  return s;
}

const Adapter* AdapterRegistry::pin(AdapterHandle handle) {
  const Version& v = held(handle);
  if (v.content < 0) return nullptr;
  const Content& c = content_at(v.content);
  return c.item >= 0 && residency_.pin(c.item) ? c.adapter.get() : nullptr;
}

void AdapterRegistry::unpin(AdapterHandle handle) {
  residency_.unpin(content_at(held(handle).content).item);
}

std::optional<int32_t> AdapterRegistry::rotate() {
  const std::optional<int32_t> item = residency_.rotate(now());
  return item ? std::optional(by_item_.at(*item)) : std::nullopt;
}

void AdapterRegistry::release(AdapterHandle handle) {
  held(handle);
  const int32_t index = handle.index;
  Version& v = at(index);
  --v.claims;
  if (v.content >= 0) {
    Content& c = content_at(v.content);
    const bool last = --c.claims == 0;
    if (last && c.item >= 0) residency_.unwant(c.item);
    update_keep(v.content);
    drop_lost();
  }
  if (versions_.is_taken(index)) drop_if_unused(index);
}

// Frees a version that nobody claims and nothing else needs. One whose files nobody has touched yet
// is needed by its claims alone.
void AdapterRegistry::drop_if_unused(int32_t index) {
  const Version& v = at(index);
  if (v.claims > 0 || v.links > 0) return;
  if (v.current) {
    if (v.error) return;
    if (v.content >= 0) {
      const Content& c = content_at(v.content);
      if (c.item >= 0 || c.loading || c.claims > 0) return;
    }
  }
  drop_version(index);
}

void AdapterRegistry::drop_version(int32_t index) {
  Version& v = at(index);
  LORRY_CHECK(v.claims == 0 && v.links == 0, "adapter {} is needed", v.key);
  if (v.current) current_.erase(v.key);
  std::erase(failures_, index);
  stop_fetching(index);
  unlink_previous(index);
  const int32_t content = v.content;
  versions_.give_back(index);
  if (content < 0) return;
  Content& c = content_at(content);
  std::erase(c.versions, index);
  if (c.versions.empty()) {
    drop_content(content);
  } else {
    update_keep(content);
  }
}

void AdapterRegistry::fail_version(int32_t index, const Error& error) {
  Version& v = at(index);
  stop_fetching(index);
  v.error = error;
  v.failed_at = now();
  if (v.current) failures_.push_back(index);
  unlink_previous(index);
  drop_if_unused(index);
}

void AdapterRegistry::forget_failures() {
  while (!failures_.empty()) {
    const int32_t oldest = failures_.front();
    const bool expired = now() - at(oldest).failed_at >= options_.failure_memory;
    if (!expired && failures_.size() <= options_.max_failures) return;
    detach(oldest);
  }
}

}  // namespace lorry
