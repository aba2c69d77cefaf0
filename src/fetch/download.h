// Brings one remote file to its place: resumed, tried again, measured, verified, and visible only
// when it is whole.
#pragma once
#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "fetch/file_hash.h"
#include "fetch/http_client.h"
#include "fetch/options.h"

namespace lorry {

struct RemoteFile {
  std::string name;     // for the progress
  std::string label;    // "adapter_model.safetensors of hub repository org/name": starts messages
  std::string path;     // where it will be
  std::string partial;  // where it grows; the caller holds the lock for it
  int64_t size = -1;    // -1: not known before
  int64_t max_bytes = 0;
  std::optional<ContentHash> hash = {};  // none: the size is all that is checked
  // A GET of the whole file; the range is added. Made anew for each try (it may be signed).
  std::function<FetchRequest()> request;
  // Throws the source's own sentence for an answer that no retry will change.
  std::function<void(const FetchResponse&)> refuse;
};

// Returns the bytes that came over the network. A hash that does not fit is tried once more from
// the first byte. Throws Error(bad_file) for a wrong hash, size or too many bytes,
// Error(unavailable) when the tries are used up, and what send(), refuse and PartialFile throw.
int64_t download(HttpClient& http, const RemoteFile& file, const FetchControl& control);

}  // namespace lorry
