// AdapterRegistry: which adapters are in memory, which are being loaded, and which must wait.
// A name (registered, or the path of a folder under the adapter root) points to a version; a
// version points to content, which is kept once per digest. Contents that nobody holds stay until
// their room is needed, the least recently released going first; held ones never go.
//
// Threads: one thread (the engine's) calls every member. Loader threads of the registry read and
// pack; they talk to it through two bounded queues and call `wake` when something has finished,
// after which the engine calls poll(). No call waits for a file.
//
// Room: `budget_bytes` bounds the packed contents, those being loaded included. The loaders' read
// buffers come on top: at most loader_threads files of limits.max_bytes.
#pragma once
#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <unordered_map>
#include <vector>

#include "adapters/adapter.h"
#include "base/bounded_queue.h"
#include "lorry/error.h"

namespace lorry {

enum class AdapterState : uint8_t {
  absent,   // nobody asked for it, or it was evicted
  loading,  // its files are being checked or read
  waiting,  // checked; waits until enough others are released
  ready,
  failed,
};

const char* to_string(AdapterState s);

// One request's claim on an adapter version. Every handle that acquire() returned is given to
// release() once, whatever became of it.
struct AdapterHandle {
  int32_t index = -1;
  friend bool operator==(const AdapterHandle&, const AdapterHandle&) = default;
};

struct AdapterStatus {
  AdapterState state = AdapterState::absent;
  const Adapter* adapter = nullptr;  // ready: stays valid until the handle's release
  const Error* error = nullptr;      // failed: the same
};

// For /v1/models and metrics.
struct AdapterSnapshot {
  struct Entry {
    std::string name;
    AdapterState state = AdapterState::absent;
    bool registered = false;
    int64_t holds = 0;
    std::string digest;  // hex; ready only, as are the next four
    size_t bytes = 0;
    int32_t max_rank = 0;
    size_t sites = 0;
    std::string base_model;
    std::string error;  // failed only
  };
  std::vector<Entry> entries;  // by name; registered names also while absent
  size_t budget_bytes = 0, used_bytes = 0;
  int64_t resident = 0;  // contents in memory
  // Since the start.
  int64_t loads_started = 0, loads_done = 0, loads_failed = 0, evictions = 0;
};

class AdapterRegistry {
 public:
  using Clock = std::function<std::chrono::steady_clock::time_point()>;

  struct Options {
    size_t budget_bytes = size_t{1} << 30;
    std::string root;  // empty: only registered names
    AdapterLimits limits = {};
    int loader_threads = 2;
    std::chrono::milliseconds failure_memory{30'000};
    // Once an adapter has waited this long for room, new claims on ready ones queue behind it.
    std::chrono::milliseconds cycle_time{2'000};
    size_t max_failures = 1024;       // failures remembered at once; the oldest are forgotten first
    std::function<void()> wake = {};  // called by loader threads; may be empty
    Clock now = {};                   // empty: the steady clock
  };

  AdapterRegistry(Options options, AdapterTarget target);
  ~AdapterRegistry();
  AdapterRegistry(const AdapterRegistry&) = delete;
  AdapterRegistry& operator=(const AdapterRegistry&) = delete;

  // Names the folder `path`; a name that exists is pointed to it and reloaded when next asked for.
  // Throws Error(invalid_argument) for a name out of the grammar.
  void register_name(const std::string& name, const std::string& path);
  // False where the name is not registered. Holders keep what they have.
  bool unregister_name(const std::string& name);
  // The next acquire reads the files anew; holders keep what they have, and equal content is kept
  // once. Also forgets a remembered failure.
  void reload(const std::string& name);

  // Claims the current version of `name` and starts to load it where needed. Any number of claims
  // share one load. A failure is remembered for failure_memory and then tried again.
  AdapterHandle acquire(const std::string& name);
  AdapterStatus status(AdapterHandle handle) const;
  void release(AdapterHandle handle);

  // Takes in what the loaders finished and gives room to those that wait, first come first served.
  void poll();

  AdapterSnapshot snapshot() const;
  // Aborts where the counts do not add up. For tests.
  void check_integrity() const;

 private:
  struct Content {
    std::unique_ptr<Adapter> adapter;
    int64_t holds = 0;
    uint64_t released_at = 0;  // order of the last release
  };
  struct Version {
    std::string name;
    bool used = false;
    bool current = false;  // names_ points here
    AdapterState state = AdapterState::absent;
    int64_t holds = 0;
    std::string digest;  // ready: key in contents_; waiting without a folder: was ready before
    std::optional<Error> error;
    std::chrono::steady_clock::time_point failed_at{}, waiting_since{};
    size_t reserved = 0;                    // bytes of the budget while its weights are read
    std::unique_ptr<AdapterFolder> folder;  // between the two halves of a load
  };
  struct Job {
    int32_t version = -1;
    std::string name, path;                 // first half: path is empty for a folder of the root
    std::unique_ptr<AdapterFolder> folder;  // second half
  };
  struct Result {
    int32_t version = -1;
    std::unique_ptr<AdapterFolder> folder;
    std::unique_ptr<Adapter> adapter;
    std::optional<Error> error;
  };

  void load_forever();
  Result work(Job job) const;

  Version& at(int32_t index) { return versions_[static_cast<size_t>(index)]; }
  const Version& at(int32_t index) const { return versions_[static_cast<size_t>(index)]; }
  int32_t current_version(const std::string& name);
  int32_t new_version(const std::string& name);
  bool must_queue(const Version& v) const;
  int32_t queue_again(int32_t index);
  void start_load(int32_t index);
  void wait_for_room(int32_t index);
  void resume(int32_t index);
  void send_jobs();
  void take(Result result);
  void fail_version(int32_t index, Error error);
  void finish(int32_t index, std::unique_ptr<Adapter> adapter);
  void grant();
  bool make_room(size_t bytes);
  void detach(const std::string& name);
  void drop_if_unused(int32_t index);
  void forget_failures();

  const Options options_;
  const AdapterTarget target_;
  std::unordered_map<std::string, std::string> paths_;  // registered names
  std::unordered_map<std::string, int32_t> names_;      // name -> its current version
  std::deque<Version> versions_;  // a deque: status() hands out pointers into it
  std::vector<int32_t> free_;
  std::unordered_map<std::string, Content> contents_;  // by digest
  std::deque<int32_t> waiting_;                        // versions in state waiting, oldest first
  std::deque<Job> unsent_;                             // no room in jobs_ yet; bounded by the holds
  std::deque<int32_t> failures_;                       // current failed versions, oldest first
  size_t used_ = 0;                                    // contents and reservations
  uint64_t releases_ = 0;
  AdapterSnapshot counts_;

  int64_t in_flight_ = 0;  // jobs sent and not yet taken back
  BoundedQueue<Job> jobs_;
  BoundedQueue<Result> results_;
  std::vector<std::thread> threads_;
};

}  // namespace lorry
