// HubCache: one repository in the cache folder that huggingface_hub uses as well:
//   models--org--name/refs/REVISION           the commit that a branch or tag had when last asked
//   models--org--name/blobs/ETAG              contents, named by their hash
//   models--org--name/snapshots/COMMIT/NAME   relative links to the blobs
//   .locks/models--org--name/ETAG.lock        held while blobs/ETAG is being made
// Our own additions, which huggingface_hub leaves alone: blobs/ETAG.incomplete (what it used to
// write itself), and models--org--name/.lorry_restricted where the hub has not said that all may
// read it. Holds nothing but paths; any thread.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "fetch/options.h"
#include "fetch/remote_files.h"

namespace lorry {

// "org/name", "name", either with "@revision" (a branch, tag or commit).
struct HubName {
  std::string repo;
  std::string revision;

  // Throws Error(invalid_argument) for what is no such name.
  static HubName parse(const std::string& text);
};

bool is_commit(const std::string& revision);  // 40 hex digits

class HubCache {
 public:
  // A blob of a file at a commit.
  struct Blob {
    std::string name;
    std::string etag;
    int64_t size = -1;  // -1: unknown
  };

  HubCache(const std::string& cache_folder, const std::string& repo);

  std::string snapshot(const std::string& commit) const;
  std::string blob_path(const std::string& etag) const;
  std::string lock_path(const std::string& etag) const;

  // The commit of a revision as of the last time: none where nothing is known.
  std::optional<std::string> commit_of(const std::string& revision) const;
  // What the folder of a commit is, where it holds all files of it: none where some are missing.
  // Throws what select_files throws for a snapshot without safetensors.
  std::optional<RemoteKind> complete_snapshot(const std::string& commit, RemoteKind wanted) const;
  // Whether the snapshot holds exactly these, as far as their sizes are known.
  bool holds(const std::string& commit, const std::vector<ListedFile>& files) const;
  bool is_restricted() const;

  // The rest writes. All throw as the functions of fetch/cache_files.h do.
  void make(const std::string& commit) const;
  void set_restricted(bool restricted) const;
  void set_commit(const std::string& revision, const std::string& commit) const;
  // Puts the blob under its name. The caller has made the blob before.
  void link(const std::string& commit, const Blob& blob) const;

 private:
  std::string folder_;
  std::string locks_;
};

}  // namespace lorry
