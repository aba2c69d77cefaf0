// AdapterLoader: the threads of the registry. They fetch adapters into folders, check folders, read
// them into memory that they are given, and copy images to the device. One thread (the engine's)
// calls every member; `wake` is called by the others when a result is there.
//
// Downloads have threads of their own, and so have copies: a slow hub delays downloads alone, a
// slow disk nothing that is in memory.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "adapters/adapter.h"
#include "adapters/adapter_ref.h"
#include "base/bounded_queue.h"
#include "lorry/error.h"

namespace lorry {

// Brings an adapter of the hub or of S3 to a local folder, whose files never change, with the
// caller's own token. Blocks; gives up soon after `cancelled` is set. Called by several threads.
// Throws Error.
using AdapterFetch =
    std::function<std::string(const AdapterPart& part, const std::atomic<bool>& cancelled)>;

// Told by a loader thread once an adapter has been read for the first time (not when it is read
// again after an eviction). `name`: for people.
using AdapterLoaded = std::function<void(const std::string& name, const Adapter& adapter)>;

// The folders that an adapter is made of.
struct AdapterFiles {
  struct Part {
    std::string name;  // for people
    std::string path;  // empty: the folder `name` below the root
    float weight = 1;
  };
  std::vector<Part> parts;
  bool is_merge = false;
  MergeSpec merge;
};

struct LoadJob {
  enum class Kind : uint8_t {
    fetch,  // part -> fetched
    open,   // files -> folder
    read,   // folder, or files opened again -> adapter, its image at `to`
    copy,   // `bytes` from `from` to `to` on the device
  } kind = Kind::open;
  int32_t id = -1;  // the caller's, below fetch_threads for a fetch
  AdapterPart part;
  AdapterFiles files;
  std::unique_ptr<AdapterFolder> folder;
  std::byte* to = nullptr;
  const std::byte* from = nullptr;
  size_t bytes = 0;        // of the memory at `to`
  bool on_device = false;  // `to` is not the processor's
};

// The one way of an image from the host tier to the device. device null: the processor's memory.
void copy_to_device(DeviceMemory* device, std::byte* to, const std::byte* from, size_t bytes);

struct LoadResult {
  LoadJob::Kind kind = LoadJob::Kind::open;
  int32_t id = -1;
  std::string fetched;  // the folder
  std::unique_ptr<AdapterFolder> folder;
  std::unique_ptr<Adapter> adapter;
  std::optional<Error> error;  // copies have none
};

class AdapterLoader {
 public:
  struct Options {
    std::string root;  // empty: parts have paths
    AdapterLimits limits;
    int loader_threads = 2;
    int fetch_threads = 16;
    AdapterFetch fetch;  // empty: no fetch job is sent, and there are no such threads
    std::function<void()> wake;
    AdapterLoaded loaded;  // may be empty
  };

  AdapterLoader(Options options, AdapterTarget target);
  ~AdapterLoader();  // cancels what it can and waits for the rest
  AdapterLoader(const AdapterLoader&) = delete;
  AdapterLoader& operator=(const AdapterLoader&) = delete;

  // Whether send() takes a job of that kind. Jobs that are sent cannot be taken back, so only a few
  // are: the others wait with the caller.
  bool has_room(LoadJob::Kind kind) const;
  // Requires: has_room.
  void send(LoadJob job);
  // Asks the fetch with that id to give up; its result comes nevertheless.
  void cancel_fetch(int32_t id);
  std::optional<LoadResult> take();

 private:
  struct Pool {
    explicit Pool(size_t n) : capacity(n), jobs(n) {}
    const size_t capacity;
    size_t in_flight = 0;  // sent and not yet taken
    BoundedQueue<LoadJob> jobs;
    std::vector<std::thread> threads;
  };

  Pool& pool_of(LoadJob::Kind kind);
  const Pool& pool_of(LoadJob::Kind kind) const;
  void start(Pool& pool, int n_threads);
  void work_forever(Pool& pool);
  LoadResult work(LoadJob job);
  std::unique_ptr<AdapterFolder> open(const AdapterFiles& files) const;

  const Options options_;
  const AdapterTarget target_;
  std::vector<std::atomic<bool>> cancelled_;  // by the id of the fetch
  Pool fetches_, loads_, copies_;
  BoundedQueue<LoadResult> results_;
};

}  // namespace lorry
