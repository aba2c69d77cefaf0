// Progress: how long work (a download, loading, packing) tells how far it is. Who draws it, or
// writes it into a log, is above.
#pragma once
#include <cstdint>
#include <functional>
#include <string_view>

namespace lorry {

struct Progress {
  std::string_view what;  // that is being done: a file's name, "loading weights"
  int64_t done = 0;       // bytes, of all that there is to do; what was there before included
  int64_t total = -1;     // bytes; -1: not known before
};

// Called by the thread that works, as often as it likes. May be empty.
using ProgressSink = std::function<void(const Progress&)>;

}  // namespace lorry
