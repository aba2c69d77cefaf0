// HubSource: adapters and models from repositories of a Hugging Face hub, or of anything that
// speaks its protocol, kept in huggingface_hub's own cache layout: either reads what the other
// wrote.
//
// Each resolve() asks the hub about the repository with the caller's own token, also when all files
// are in the cache: who may not read the repository gets an error, whoever fetched it before. Files
// are verified when they are fetched; what the cache has is trusted where its size is right.
// Offline (Options::offline, the operator's word) the cache answers alone; where the hub cannot be
// reached, or fails, it answers for repositories that are open to all.
//
// resolve() blocks, and may be called by any number of threads and processes on the same cache.
#pragma once
#include <string>

#include "fetch/fetched.h"
#include "fetch/options.h"

namespace lorry {

class HubSource {
 public:
  struct Options {
    std::string endpoint = "https://huggingface.co";  // HF_ENDPOINT
    std::string cache_folder;                         // HF_HUB_CACHE; must be given
    bool offline = false;                             // HF_HUB_OFFLINE
    std::string default_token = {};                   // HF_TOKEN; for callers without a token
    NetworkOptions network = {};
    FetchLimits limits = {};
  };

  // Throws Error(invalid_argument) for an endpoint that is no http or https URL.
  explicit HubSource(Options options);

  // What `name` is: "org/name" or "org/name@revision" (a branch, tag or commit; "main" where none
  // is given), wanted as an adapter, a model or either. `token`: the caller's own; empty: the
  // default one. Throws Error
  //  invalid_argument  no such name; the repository is private or gated and the token may not read
  //                    it; the cache cannot be written
  //  not_found         no such repository or revision, it does not hold what is wanted, or
  //  (offline)
  //                    the cache has none
  //  unsupported       its weights are pickle, or it is a model and no adapter, or the reverse
  //  bad_file          too large, a wrong hash, a name that leads out of the folder, broken answers
  //  over_capacity     the disk is full
  //  unavailable       the hub could not be reached or failed, cancelled, or the time is over
  Fetched resolve(const std::string& name, const std::string& token,
                  const FetchControl& control = {}, RemoteKind wanted = RemoteKind::adapter) const;

 private:
  Options options_;
};

}  // namespace lorry
