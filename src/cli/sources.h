// Where adapters and models come from that are not on this disk: what flags and the usual variables
// of the hub (HF_*) and of S3 (AWS_*) say.
#pragma once
#include <string>
#include <vector>

#include "adapters/loader.h"
#include "fetch/hub.h"
#include "fetch/s3.h"

namespace lorry {

// HF_ENDPOINT; HF_HUB_CACHE, else HF_HOME/hub, else huggingface/hub in the user's cache folder;
// HF_HUB_OFFLINE; HF_TOKEN or HUGGING_FACE_HUB_TOKEN, else the file HF_TOKEN_PATH or HF_HOME/token.
// `cache`: a folder that a flag names, or empty.
HubSource::Options hub_options(const std::string& cache);

// AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL or (LoRAX's) S3_ENDPOINT_URL; AWS_REGION or
// AWS_DEFAULT_REGION; AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN.
// The cache is lorry/s3 in the user's cache folder.
S3Source::Options s3_options();

// Throws Error(invalid_argument) for an endpoint that is no URL.
AdapterFetch make_fetch(const std::string& hub_cache);

// What a command line asks for by its name elsewhere.
struct RemoteName {
  std::string name;      // "org/name", "org/name@revision", "s3://bucket/prefix"
  std::string revision;  // of the hub, instead of the one in the name
  std::string cache;     // folder; empty: the usual ones
};

// Whether `text` can be such a name.
bool is_remote_name(const std::string& text);

// Fetches it, of any size. Throws Error as HubSource and S3Source do, and invalid_argument for two
// revisions or a name that is none.
Fetched fetch_remote(const RemoteName& what, RemoteKind wanted, const FetchControl& control);

}  // namespace lorry
