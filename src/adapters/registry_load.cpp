// What is loaded for the versions: fetches into folders, content into memory.
#include <algorithm>
#include <cstring>
#include <utility>

#include "adapters/registry.h"
#include "base/error.h"

namespace lorry {

namespace {

std::string key_of(const AdapterPart& part) {
  AdapterRef one;
  one.parts.push_back(part);
  return one.key();
}

// What is made of folders that never change, and how.
std::string source_of(const AdapterRef& ref, const std::vector<std::string>& folders) {
  AdapterRef made_of = ref;
  for (size_t i = 0; i < folders.size(); ++i) {
    made_of.parts[i].name = folders[i];
    made_of.parts[i].api_token.clear();
  }
  return made_of.key();
}

}  // namespace

// ---- fetches ----

void AdapterRegistry::start_load(int32_t index) {
  const std::vector<AdapterPart>& parts = at(index).ref.parts;
  for (size_t i = 0; i < parts.size(); ++i) {
    if (parts[i].source != AdapterSource::local) fetch(index, static_cast<int32_t>(i));
  }
  if (at(index).n_fetches == 0) attach_content(index);
}

void AdapterRegistry::fetch(int32_t index, int32_t part) {
  const AdapterPart& wanted = at(index).ref.parts[static_cast<size_t>(part)];
  const std::string key = key_of(wanted);
  const auto [found, is_new] = fetches_.try_emplace(key);
  if (is_new) {
    found->second.part = wanted;
    to_fetch_.push_back(key);
  }
  found->second.waiting.emplace_back(index, part);
  ++at(index).n_fetches;
}

void AdapterRegistry::stop_fetching(int32_t index) {
  if (at(index).n_fetches == 0) return;
  at(index).n_fetches = 0;
  for (const AdapterPart& part : at(index).ref.parts) {
    const auto found = fetches_.find(key_of(part));
    if (found == fetches_.end()) continue;
    Fetch& f = found->second;
    std::erase_if(f.waiting, [&](const auto& w) { return w.first == index; });
    if (!f.waiting.empty()) continue;
    if (f.slot >= 0) {
      loader_.cancel_fetch(f.slot);
    } else {
      std::erase(to_fetch_, found->first);
    }
    fetches_.erase(found);
  }
}

void AdapterRegistry::take_fetched(LoadResult result) {
  const std::string key = std::exchange(slots_[static_cast<size_t>(result.id)], {});
  if (result.error) ++counts_.fetches_failed;
  const auto found = fetches_.find(key);
  if (found == fetches_.end() || found->second.slot != result.id) return;  // nobody waits any more
  const auto waiting = std::move(found->second.waiting);
  fetches_.erase(found);
  for (const auto& [index, part] : waiting) {
    Version& v = at(index);
    if (v.n_fetches == 0) continue;  // failed a moment ago: the part is in it twice
    const auto p = static_cast<size_t>(part);
    const bool unreachable = result.error && result.error->code() == Code::unavailable;
    if (!result.error) {
      v.folders[p] = result.fetched;
    } else if (unreachable && v.previous >= 0) {
      v.folders[p] = at(v.previous).folders[p];
    } else {
      fail_version(index, *result.error);
      continue;
    }
    v.fetched_at = now();
    if (--v.n_fetches == 0) attach_content(index);
  }
}

void AdapterRegistry::unlink_previous(int32_t index) {
  const int32_t previous = std::exchange(at(index).previous, -1);
  if (previous < 0) return;
  --at(previous).links;
  drop_if_unused(previous);
}

// ---- content ----

void AdapterRegistry::attach_content(int32_t index) {
  Version& v = at(index);
  const bool never_changes =
      std::none_of(v.folders.begin(), v.folders.end(), [](const auto& f) { return f.empty(); });
  const std::string source = never_changes ? source_of(v.ref, v.folders) : std::string();
  const auto found = by_source_.find(source);
  v.content = found == by_source_.end() ? new_content(v, source) : found->second;
  Content& c = content_at(v.content);
  c.versions.push_back(index);
  if (v.claims > 0) add_claims(v.content, v.claims);
  update_keep(v.content);
  unlink_previous(index);
  if (c.versions.size() <= options_.max_keys) return;
  for (const int32_t other : c.versions) {
    if (other == index || at(other).claims > 0 || !at(other).current) continue;
    return detach(other);
  }
}

int32_t AdapterRegistry::new_content(const Version& v, const std::string& source) {
  const int32_t index = contents_.take();
  Content& c = content_at(index);
  c.files.is_merge = v.ref.is_merge;
  c.files.merge = v.ref.merge;
  for (size_t i = 0; i < v.ref.parts.size(); ++i) {
    const AdapterPart& part = v.ref.parts[i];
    std::string path = v.path.empty() ? v.folders[i] : v.path;
    const auto name = names_.find(part.name);
    if (path.empty() && name != names_.end()) path = name->second.path;
    c.files.parts.push_back({part.name, std::move(path), part.weight});
  }
  if (!source.empty()) {
    c.sources.push_back(source);
    by_source_[source] = index;
  }
  to_open_.push_back(index);
  ++counts_.loads_started;
  return index;
}

void AdapterRegistry::add_claims(int32_t content, int64_t n) {
  Content& c = content_at(content);
  c.claims += n;
  if (c.item >= 0) residency_.want(c.item, now());
}

// The files of a version that was replaced are not what they were, as far as anybody knows.
void AdapterRegistry::update_keep(int32_t content) {
  const Content& c = content_at(content);
  if (c.item < 0) return;
  const bool replaced = c.sources.empty() &&
                        std::any_of(c.versions.begin(), c.versions.end(),
                                    [&](int32_t i) { return !at(i).current && at(i).claims > 0; });
  residency_.keep(c.item, replaced, now());
}

// ---- jobs and results ----

void AdapterRegistry::poll() {
  while (std::optional<LoadResult> result = loader_.take()) {
    if (options_.mirror != nullptr && result->kind == LoadJob::Kind::read) {
      unmirrored_.push_back(*std::move(result));
    } else {
      take(*std::move(result));
    }
  }
  take_mirrored();
  forget_failures();
  send_jobs();
}

void AdapterRegistry::send_jobs() {
  size_t moved = 0;
  while (loader_.has_room(LoadJob::Kind::read) && loader_.has_room(LoadJob::Kind::copy) &&
         moved < options_.move_bytes) {
    const std::optional<Residency::Work> work = residency_.next(now());
    drop_lost();
    if (!work) break;
    carry_out(*work);
    if (is_done_here(*work)) moved += static_cast<size_t>(work->bytes);
  }
  while (!to_open_.empty() && loader_.has_room(LoadJob::Kind::open)) {
    LoadJob job;
    job.kind = LoadJob::Kind::open;
    job.id = to_open_.front();
    job.files = content_at(job.id).files;
    content_at(job.id).loading = true;
    to_open_.pop_front();
    loader_.send(std::move(job));
  }
  for (size_t slot = 0; slot < slots_.size() && !to_fetch_.empty(); ++slot) {
    if (!slots_[slot].empty()) continue;
    slots_[slot] = std::move(to_fetch_.front());
    to_fetch_.pop_front();
    Fetch& f = fetches_.at(slots_[slot]);
    f.slot = static_cast<int32_t>(slot);
    LoadJob job;
    job.kind = LoadJob::Kind::fetch;
    job.id = f.slot;
    job.part = f.part;
    ++counts_.fetches_started;
    loader_.send(std::move(job));
  }
}

// Moves, which must not overlap with a step, and copies that take less than waking a thread that
// must first take a core from the compute threads.
bool AdapterRegistry::is_done_here(const Residency::Work& work) {
  constexpr int64_t kSmall = int64_t{1} << 20;
  return work.kind == Residency::Work::Kind::move ||
         (work.kind == Residency::Work::Kind::copy && work.bytes <= kSmall);
}

void AdapterRegistry::carry_out(const Residency::Work& work) {
  using Kind = Residency::Work::Kind;
  Content& c = content_at(by_item_.at(work.item));
  std::byte* to = memory(work.tier) + work.to;
  if (work.kind == Kind::move) {
    const std::byte* from = memory(work.tier) + work.from;
    const auto bytes = static_cast<size_t>(work.bytes);
    if (device_ != nullptr && work.tier == AdapterTier::device) {
      device_->move(to, from, bytes);
    } else {
      std::memmove(to, from, bytes);
    }
    if (work.tier == AdapterTier::device) c.adapter->rebase(to);
    if (options_.mirror != nullptr) {
      options_.mirror->move(by_item_.at(work.item), work.from, work.to, work.bytes);
    }
    return;
  }
  if (is_done_here(work)) {
    copy_to_device(device_, to, memory(AdapterTier::host) + work.from,
                   static_cast<size_t>(work.bytes));
    residency_.finished(work.item, true, now());
    c.adapter->rebase(to);
    return;
  }
  LoadJob job;
  job.id = by_item_.at(work.item);
  job.to = to;
  job.on_device = device_ != nullptr && work.tier == AdapterTier::device;
  job.bytes = static_cast<size_t>(work.bytes);
  if (work.kind == Kind::copy) {
    job.kind = LoadJob::Kind::copy;
    job.from = memory(AdapterTier::host) + work.from;
  } else {
    if (!c.folder) ++counts_.loads_started;  // it is read again
    job.kind = LoadJob::Kind::read;
    job.files = c.files;
    job.folder = std::move(c.folder);
    if (options_.mirror != nullptr) options_.mirror->read(job.id, c.files, work.to, work.bytes);
  }
  c.loading = true;
  loader_.send(std::move(job));
}

void AdapterRegistry::take(LoadResult result) {
  if (result.kind == LoadJob::Kind::fetch) return take_fetched(std::move(result));
  const int32_t content = result.id;
  Content& c = content_at(content);
  c.loading = false;
  if (result.kind == LoadJob::Kind::open) {
    if (c.dropped) return contents_.give_back(content);
    return take_folder(content, std::move(result));
  }
  if (c.dropped) {
    residency_.finished(c.item, !result.error, now());
    return contents_.give_back(content);
  }
  take_image(content, std::move(result));
}

// Its files are checked and its size is known.
void AdapterRegistry::take_folder(int32_t content, LoadResult result) {
  Content& c = content_at(content);
  if (result.error) return fail_to_load(content, *std::move(result.error), true);
  const auto bytes = static_cast<int64_t>(std::max<size_t>(1, result.folder->packed_bytes()));
  if (!residency_.fits(bytes)) {
    return fail_to_load(
        content,
        Error(Code::over_capacity,
              fmt::format("adapter '{}' takes {} bytes of adapter memory, which holds {}",
                          c.files.parts.front().name, bytes, options_.device_bytes)),
        true);
  }
  if (c.claims == 0) return drop_unclaimed(content);
  c.folder = std::move(result.folder);
  c.item = residency_.add(bytes);
  by_item_[c.item] = content;
  residency_.want(c.item, now());
  update_keep(content);
}

void AdapterRegistry::take_image(int32_t content, LoadResult result) {
  Content& c = content_at(content);
  if (result.kind == LoadJob::Kind::copy) {
    residency_.finished(c.item, true, now());
    c.adapter->rebase(memory(AdapterTier::device) + residency_.offset(c.item, AdapterTier::device));
    return;
  }
  const bool again = c.adapter != nullptr;
  const std::string digest = result.error ? std::string() : to_hex(result.adapter->digest());
  if (!result.error && again && digest != c.digest) {
    result.error = Error(Code::bad_file,
                         fmt::format("adapter '{}' changed on disk while this request waited for "
                                     "its turn; send it again",
                                     c.files.parts.front().name));
  }
  residency_.finished(c.item, !result.error, now());
  if (result.error) {
    by_item_.erase(std::exchange(c.item, -1));
    return fail_to_load(content, *std::move(result.error), !again);
  }
  ++counts_.loads_done;
  c.adapter = std::move(result.adapter);
  if (again) return;
  c.digest = digest;
  const auto [known, is_new] = by_digest_.try_emplace(digest, content);
  if (!is_new) merge_into(content, known->second);
}

// They turned out to be equal: everybody goes on with the one that was there.
void AdapterRegistry::merge_into(int32_t content, int32_t known) {
  Content& from = content_at(content);
  Content& to = content_at(known);
  for (const int32_t index : from.versions) {
    at(index).content = known;
    to.versions.push_back(index);
  }
  from.versions.clear();
  if (to.sources.empty() && !from.sources.empty()) to.files = from.files;
  for (const std::string& source : std::exchange(from.sources, {})) {
    by_source_.erase(source);
    if (to.sources.size() >= options_.max_keys) continue;
    by_source_[source] = known;
    to.sources.push_back(source);
  }
  if (const int64_t claims = std::exchange(from.claims, 0); claims > 0) {
    residency_.unwant(from.item);
    add_claims(known, claims);
  }
  from.digest.clear();
  drop_content(content);
  update_keep(known);
}

// Requires: it has no item. `remember`: the next acquire gets the same error, for a while.
void AdapterRegistry::fail_to_load(int32_t content, Error error, bool remember) {
  ++counts_.loads_failed;
  const std::vector<int32_t> versions = std::exchange(content_at(content).versions, {});
  content_at(content).claims = 0;
  drop_content(content);
  for (const int32_t index : versions) {
    Version& v = at(index);
    v.content = -1;
    if (v.current && !remember) {
      current_.erase(v.key);
      v.current = false;
    }
    fail_version(index, error);
  }
}

// Requires: it has neither versions nor claims.
void AdapterRegistry::drop_content(int32_t content) {
  Content& c = content_at(content);
  LORRY_CHECK(c.versions.empty() && c.claims == 0, "content {} is needed", content);
  if (!c.digest.empty()) by_digest_.erase(c.digest);
  for (const std::string& source : c.sources) by_source_.erase(source);
  std::erase(to_open_, content);
  if (c.item >= 0) {
    by_item_.erase(c.item);
    residency_.remove(c.item);
  }
  c.dropped = true;
  if (!c.loading) contents_.give_back(content);
}

void AdapterRegistry::drop_unclaimed(int32_t content) {
  for (const int32_t index : std::vector<int32_t>(content_at(content).versions)) {
    if (at(index).links == 0) {
      drop_version(index);
      continue;
    }
    at(index).content = -1;  // only its folders are still of use
    std::erase(content_at(content).versions, index);
    if (content_at(content).versions.empty()) drop_content(content);
  }
}

void AdapterRegistry::drop_lost() {
  for (const int32_t item : residency_.take_lost()) drop_unclaimed(by_item_.at(item));
}

}  // namespace lorry
