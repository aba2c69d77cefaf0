// What the sources of adapters and models (fetch/hub.h, fetch/s3.h) have in common: time limits,
// retries, size limits, and how a caller follows and stops a fetch. Plain data; src/cli fills it.
#pragma once
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

#include "base/progress.h"

namespace lorry {

struct NetworkOptions {
  std::chrono::milliseconds connect_timeout{10'000};
  // A transfer below this many bytes a second for this long has failed (and is tried again).
  int64_t low_speed_bytes = 1024;
  std::chrono::seconds low_speed_time{30};
  // Of one resolve(), retries and waiting for other processes included.
  std::chrono::milliseconds total_timeout{1'800'000};
  // Tries of one request until it fails with a timeout, a reset, 408, 429 or 5xx. A download that
  // got further than before starts to count anew.
  int attempts = 5;
  // Before the second try; doubled each time up to max_delay, times 0.5 to 1.5 by chance.
  std::chrono::milliseconds first_delay{500};
  std::chrono::milliseconds max_delay{10'000};
  // A server's Retry-After is obeyed up to this.
  std::chrono::milliseconds max_retry_after{30'000};
  std::string user_agent = "lorry";
  std::string ca_file = {};  // PEM certificates instead of the system's; empty: the system's
};

struct FetchLimits {
  int64_t max_file_bytes = int64_t{16} << 30;
  int64_t max_total_bytes = int64_t{16} << 30;  // of the files of one folder
  int64_t max_config_bytes = int64_t{4} << 20;  // adapter_config.json, config.json
  size_t max_listing_bytes = size_t{16} << 20;  // one answer that lists files
  size_t max_listed_files = 100'000;
  int64_t min_free_bytes = int64_t{64} << 20;  // left on the cache's disk after the download
};

// What a remote folder is asked for as; `any`: as whichever of the two it is.
enum class RemoteKind { adapter, model, any };

// What is about to be downloaded.
struct FetchPlan {
  RemoteKind kind = RemoteKind::adapter;  // or model
  int64_t files = 0, total_bytes = 0;     // of the folder; -1 bytes: not known before
  int64_t missing_bytes = 0;              // of these, still to come
};

// What the caller of a resolve() holds in its hands. All may stay empty.
struct FetchControl {
  // Set by any thread: the call ends with Error(unavailable) within about a second.
  const std::atomic<bool>* cancelled = nullptr;
  // Both are called on the caller's thread: once before the first byte, where there is something to
  // download; and for each piece that arrived, with the bytes of all files.
  std::function<void(const FetchPlan&)> plan = {};
  ProgressSink progress = {};
};

}  // namespace lorry
