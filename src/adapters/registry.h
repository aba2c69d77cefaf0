// AdapterRegistry: which adapters there are, from the name in a request to an image on the device.
//
// A key (what a request asks for, with the digest of its token where one is needed) points to a
// version; a version has content; content is kept once per digest. Content is read from its folders
// into memory (residency.h says which images are where), and read again when it was evicted while
// claims on it remain. A reload gives a key a new version and leaves claims on the old one alone.
//
// One thread (the engine's) calls every member; the threads of AdapterLoader call `wake` when
// something has finished, after which the engine calls poll(). No call waits for a file.
//
// Memory: the two tiers are allocated at start. The loaders' read buffers come on top: at most
// loader_threads files of limits.max_bytes. Versions are bounded: a failure is remembered for
// failure_memory, max_failures of them; a version without claims or content is forgotten, and
// content has at most max_keys of them.
#pragma once
#include <array>
#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "adapters/adapter.h"
#include "adapters/adapter_ref.h"
#include "adapters/loader.h"
#include "adapters/mirror.h"
#include "adapters/residency.h"
#include "adapters/snapshot.h"
#include "base/memory.h"
#include "base/slots.h"
#include "lorry/error.h"

namespace lorry {

// One request's claim on an adapter version. Every handle that acquire() returned is given to
// release() once, whatever became of it.
struct AdapterHandle {
  int32_t index = -1;
  friend bool operator==(const AdapterHandle&, const AdapterHandle&) = default;
};

struct AdapterStatus {
  AdapterState state = AdapterState::absent;
  const Error* error = nullptr;  // failed: stays valid until the handle's release
  // Once its files have been read; its view() may be used while it is pinned. To be asked for
  // anew after each poll().
  const Adapter* adapter = nullptr;
};

class AdapterRegistry {
 public:
  using Time = std::chrono::steady_clock::time_point;

  struct Options {
    size_t device_bytes = size_t{1} << 30;
    size_t host_bytes = 0;  // 0: images are read into device memory directly
    std::string root;       // empty: only registered names
    AdapterLimits limits = {};
    int32_t max_active = 1024;  // contents pinned at once
    // How long an adapter may run, at least, while others wait for its room.
    std::chrono::nanoseconds cycle_time{std::chrono::milliseconds(250)};
    std::chrono::milliseconds failure_memory{30'000};
    // What was fetched is asked for again after this time, with the caller's token; while the hub
    // cannot be reached the earlier answer holds.
    std::chrono::milliseconds fetch_memory{600'000};
    size_t max_failures = 1024;  // failures remembered at once; the oldest are forgotten first
    size_t max_keys = 1024;
    size_t move_bytes = size_t{32} << 20;  // moved or copied within memory in one poll()
    int loader_threads = 2;
    int fetch_threads = 16;
    AdapterFetch fetch = {};          // empty: the hub and S3 are refused
    std::function<void()> wake = {};  // called by loader threads; may be empty
    AdapterLoaded loaded = {};        // the same
    // Other ranks; null: none. Requires: no host tier.
    AdapterMirror* mirror = nullptr;
    std::function<Time()> now = {};  // empty: the steady clock
  };

  AdapterRegistry(Options options, AdapterTarget target);
  ~AdapterRegistry();
  AdapterRegistry(const AdapterRegistry&) = delete;
  AdapterRegistry& operator=(const AdapterRegistry&) = delete;

  // ---- names ----

  // Names the folder `path`; a name that exists is pointed to it and reloaded when next asked for.
  // Throws Error(invalid_argument) for a name out of the grammar.
  void register_name(const std::string& name, const std::string& path);
  bool is_registered(const std::string& name) const { return names_.contains(name); }
  // False where the name is not registered. Claims on it stay, and its memory is free with the
  // last.
  bool unregister_name(const std::string& name);
  // The next acquire of the local adapter `name`, or of a merge with it, reads the files anew;
  // claims stay, and equal content is kept once. Also forgets a remembered failure.
  void reload(const std::string& name);

  // ---- claims ----

  // Claims the current version of `ref` (where a registered name stands before all sources) and
  // starts to load it where needed. Any number of claims share one load. A failure is remembered
  // for failure_memory and then tried again. Requires: !ref.empty().
  AdapterHandle acquire(const AdapterRef& ref);
  // Claims what is in the folder `path`, under a name that does not yet lead to it: publish() makes
  // it what the name means, if it could be loaded. Throws as register_name.
  AdapterHandle acquire_folder(const std::string& name, const std::string& path);
  void publish(AdapterHandle handle);
  AdapterStatus status(AdapterHandle handle) const;
  void release(AdapterHandle handle);

  // Where the handle's adapter has its turn on the device, it stays there until unpin(), and its
  // content is returned; else null: ask again after poll(). Each request that runs pins once.
  const Adapter* pin(AdapterHandle handle);
  void unpin(AdapterHandle handle);
  // Equal for handles of the same content; requires status().adapter.
  int32_t content(AdapterHandle handle) const { return at(handle.index).content; }

  // Takes in what the loaders finished and gives them more to do. Between two steps: it moves
  // images on the device.
  void poll();
  // After poll(): content whose requests must step aside for others, for now: all its pins are to
  // be given up at once. To be repeated, each time followed by poll().
  std::optional<int32_t> rotate();
  // Of the turns that begin from now on.
  void set_cycle_time(std::chrono::nanoseconds t) { residency_.set_cycle_time(t); }

  // Parts of it that cost nothing.
  Residency::Counts memory() const { return residency_.counts(); }
  int64_t loads_failed() const { return counts_.loads_failed; }
  AdapterSnapshot snapshot() const;
  // Aborts where the counts do not add up. For tests.
  void check_integrity() const;

 private:
  struct Registered {
    std::string path;
    int64_t hits = 0;
    Time used_at{};
  };
  struct Version {
    AdapterRef ref;
    std::string key;
    std::string path;      // acquire_folder: the folder
    bool current = false;  // current_ points here
    int64_t claims = 0;
    int64_t links = 0;  // of a newer version, which asks whether this one is still right
    int32_t previous = -1;
    int32_t n_fetches = 0;             // not yet answered
    std::vector<std::string> folders;  // of the parts that were fetched
    int32_t content = -1;
    std::optional<Error> error;
    Time failed_at{}, fetched_at{}, used_at{};
    int64_t hits = 0;
  };
  struct Content {
    AdapterFiles files;
    // What it is made of, where that never changes; several when they turned out to be equal.
    std::vector<std::string> sources;
    bool dropped = false;  // nobody needs it, a loader has it
    bool loading = false;  // a loader has it
    int64_t claims = 0;    // of all its versions
    std::vector<int32_t> versions;
    std::unique_ptr<AdapterFolder> folder;  // checked, not yet read
    int32_t item = -1;                      // in residency_, once its size is known
    std::unique_ptr<Adapter> adapter;       // once it was read
    std::string digest;                     // hex
  };
  struct Fetch {
    AdapterPart part;
    int32_t slot = -1;                                 // -1: waits for one
    std::vector<std::pair<int32_t, int32_t>> waiting;  // version, part
  };

  Version& at(int32_t i) { return versions_[i]; }
  const Version& at(int32_t i) const { return versions_[i]; }
  Content& content_at(int32_t i) { return contents_[i]; }
  const Content& content_at(int32_t i) const { return contents_[i]; }
  Time now() const { return options_.now(); }
  std::byte* memory(AdapterTier tier) const {
    return tier == AdapterTier::host ? host_memory_.data() : device_memory_.data();
  }

  // registry.cpp: names, versions, claims
  const Version& held(AdapterHandle handle) const;
  void check_ref(const AdapterRef& ref) const;
  int32_t current_version(const AdapterRef& ref);
  int32_t new_version(AdapterRef ref);
  void detach(int32_t version);
  // All current versions that the local adapter `name` is part of.
  void detach_name(const std::string& name);
  void drop_if_unused(int32_t version);
  void drop_version(int32_t version);
  void forget_failures();
  void fail_version(int32_t version, const Error& error);
  AdapterState state_of(const Version& v) const;
  AdapterSnapshot::Entry entry_of(const Version& v) const;

  // registry_load.cpp: fetches, contents; registry_mirror.cpp: other ranks
  void start_load(int32_t version);
  void fetch(int32_t version, int32_t part);
  void stop_fetching(int32_t version);
  void take_fetched(LoadResult result);
  void unlink_previous(int32_t version);
  void attach_content(int32_t version);
  int32_t new_content(const Version& v, const std::string& source);
  void add_claims(int32_t content, int64_t n);
  void update_keep(int32_t content);
  void send_jobs();
  static bool is_done_here(const Residency::Work& work);
  void carry_out(const Residency::Work& work);
  void take(LoadResult result);
  void take_mirrored();
  void take_folder(int32_t content, LoadResult result);
  void take_image(int32_t content, LoadResult result);
  void merge_into(int32_t content, int32_t known);
  void fail_to_load(int32_t content, Error error, bool remember);
  void drop_content(int32_t content);
  // Forgets content that nobody claims, and its versions.
  void drop_unclaimed(int32_t content);
  void drop_lost();

  void check_contents() const;

  const Options options_;
  std::unordered_map<std::string, Registered> names_;
  std::unordered_map<std::string, int32_t> current_;  // key -> its current version
  Slots<Version> versions_;
  std::deque<int32_t> failures_;  // current failed versions, oldest first
  Slots<Content> contents_;
  std::unordered_map<std::string, int32_t> by_digest_, by_source_;
  std::unordered_map<int32_t, int32_t> by_item_;
  std::deque<int32_t> to_open_;                     // contents whose files are to be checked
  std::unordered_map<std::string, Fetch> fetches_;  // by the key of the part
  std::deque<std::string> to_fetch_;                // keys of fetches_ that wait for a slot
  std::vector<std::string> slots_;  // the key that is fetched in each slot; empty: none is
  AdapterSnapshot counts_;
  DeviceMemory* const device_;  // null: the device is the processor
  PinnedBuffer host_memory_;
  Buffer device_memory_;
  Residency residency_;
  std::vector<LoadResult> unmirrored_;  // read here, and not yet by all ranks
  AdapterLoader loader_;                // last: its threads use the others
};

}  // namespace lorry
