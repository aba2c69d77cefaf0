// AdapterMirror: told what becomes of the images in device memory, where other processes (the other
// ranks of a model) keep their own parts of the same adapters at the same places. Called by the
// engine thread, between two steps.
#pragma once
#include <cstdint>
#include <optional>
#include <string>

#include "lorry/error.h"

namespace lorry {

struct AdapterFiles;

class AdapterMirror {
 public:
  virtual ~AdapterMirror() = default;
  // The content is being read to [to, to + bytes).
  virtual void read(int32_t content, const AdapterFiles& files, int64_t to, int64_t bytes) = 0;
  virtual void move(int32_t content, int64_t from, int64_t to, int64_t bytes) = 0;
  // Whether all have ended what read() told them of it last. `digest`: what it must be everywhere;
  // error: what went wrong elsewhere, if anything did.
  virtual bool has_read(int32_t content, const std::string& digest,
                        std::optional<Error>& error) = 0;
};

}  // namespace lorry
