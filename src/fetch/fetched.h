// Fetched: what a source (fetch/hub.h, fetch/s3.h) gives back: a folder with the files of an
// adapter or a model. Plain data.
#pragma once
#include <cstdint>
#include <string>

#include "fetch/options.h"

namespace lorry {

struct Fetched {
  // Holds the configuration and *.safetensors, as select_files (fetch/remote_files.h) chose them,
  // whole and verified. Its files never change: what the source replaces later gets another folder.
  std::string folder;
  // What `folder` is a copy of: the commit (hub), the digest of names, sizes and ETags (S3).
  std::string revision;
  int64_t downloaded_bytes = 0;           // by this call; 0 when the cache had everything
  RemoteKind kind = RemoteKind::adapter;  // or model
};

}  // namespace lorry
