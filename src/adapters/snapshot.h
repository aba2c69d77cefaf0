// AdapterSnapshot: what the registry says about itself, for /v1/models, /v1/adapters and metrics.
// Plain data.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "adapters/adapter_ref.h"
#include "adapters/residency.h"

namespace lorry {

enum class AdapterState : uint8_t {
  absent,       // registered and not in memory
  downloading,  // the hub or S3 is asked
  loading,      // its files are being checked or read, or wait for room
  host,         // in the host tier, waiting for room on the device or for its next request
  device,
  failed,
};

const char* to_string(AdapterState s);

struct AdapterSnapshot {
  struct Entry {
    std::string name;  // AdapterRef::label
    AdapterSource source = AdapterSource::local;
    AdapterState state = AdapterState::absent;
    bool registered = false;
    int64_t claims = 0;  // requests that run with it or wait for it
    int64_t hits = 0;    // claims so far; of a name that is not registered: since it was loaded
    double idle_seconds = -1;  // since the last claim; -1: there was none
    std::string digest;        // hex; known while it is in memory, as are the next four
    size_t bytes = 0;          // of its image
    int32_t max_rank = 0;
    size_t sites = 0;
    std::string base_model;
    std::string error;  // failed only
  };
  std::vector<Entry> entries;  // by name; registered names also while absent
  Residency::Counts memory;
  int64_t contents = 0;  // different adapters in memory
  // Since the start.
  int64_t loads_started = 0, loads_done = 0, loads_failed = 0;  // reads of files
  int64_t fetches_started = 0, fetches_failed = 0;
};

}  // namespace lorry
