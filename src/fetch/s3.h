// S3Source: adapters and models from a bucket of Amazon S3 or of anything that speaks its protocol
// (path-style addresses, Signature Version 4).
//
// Each resolve() lists the objects below the prefix. Names, sizes and ETags together name the
// folder in the cache, so that a changed object gets a new folder and an old one never changes:
//   s3--BUCKET/DIGEST/NAME              the files
//   s3--BUCKET/DIGEST.incomplete/NAME   while they are being fetched
//   .locks/s3--BUCKET/DIGEST.lock       held meanwhile
// Sizes are checked, and each part of a file comes from the object with the listed ETag (If-Match).
// An ETag is no hash that could be relied on: contents are vouched for by the store and by TLS.
//
// resolve() blocks, and may be called by any number of threads and processes on the same cache.
#pragma once
#include <string>

#include "fetch/fetched.h"
#include "fetch/options.h"
#include "fetch/sigv4.h"

namespace lorry {

class S3Source {
 public:
  struct Options {
    std::string endpoint = {};  // empty: Amazon's in the region
    std::string region = "us-east-1";
    S3Credentials credentials = {};  // without an access key: public buckets only
    std::string cache_folder;        // must be given
    NetworkOptions network = {};
    FetchLimits limits = {};
  };

  // Throws Error(invalid_argument) for an endpoint that is no http or https URL.
  explicit S3Source(Options options);

  // What `name` is: "bucket/prefix" or "s3://bucket/prefix"; its files are the objects
  // "prefix/NAME". Throws Error as HubSource::resolve() does; there is no offline mode.
  Fetched resolve(const std::string& name, const FetchControl& control = {},
                  RemoteKind wanted = RemoteKind::adapter) const;

 private:
  Options options_;
};

}  // namespace lorry
