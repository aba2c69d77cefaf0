#include "fetch/hub.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "base/error.h"
#include "base/files.h"
#include "base/json.h"
#include "base/text.h"
#include "fetch/cache_files.h"
#include "fetch/download.h"
#include "fetch/http_client.h"
#include "fetch/hub_cache.h"
#include "fetch/remote_files.h"

namespace lorry {

namespace {

// What the hub says about a repository at a revision.
struct RepoInfo {
  std::string commit;
  std::vector<ListedFile> files;
  bool is_public = false;  // it said in so many words that all may read it
};

bool is_false(const json::object& o, std::string_view key) {
  const json::value* v = o.if_contains(key);
  return v != nullptr && v->is_bool() && !v->get_bool();
}

std::string string_at(const json::object& o, std::string_view key) {
  const json::value* v = o.if_contains(key);
  return v != nullptr && v->is_string() ? std::string(v->get_string()) : std::string();
}

int64_t size_at(const json::object& o, std::string_view key) {
  const json::value* v = o.if_contains(key);
  if (v == nullptr || v->is_null()) return -1;
  // A negative or absurd size is no size: the download measures.
  return v->is_int64() && v->get_int64() >= 0 ? v->get_int64() : -1;
}

RepoInfo parse_info(const std::string& text, const std::string& label, const FetchLimits& limits) {
  const json::value value = parse_json(text, "the hub's answer about " + label);
  const json::object* o = value.if_object();
  const json::value* siblings = o == nullptr ? nullptr : o->if_contains("siblings");
  RepoInfo info;
  if (o != nullptr) info.commit = string_at(*o, "sha");
  if (!is_commit(info.commit) || siblings == nullptr || !siblings->is_array()) {
    fail(Code::bad_file,
         "{}: expected \"sha\" and \"siblings\" in the answer about it: the endpoint is no Hugging "
         "Face hub",
         label);
  }
  const json::array& files = siblings->get_array();
  if (files.size() > limits.max_listed_files) {
    fail(Code::bad_file, "{}: has {} files; at most {} are looked at", label, files.size(),
         limits.max_listed_files);
  }
  for (const json::value& file : files) {
    const json::object entry = file.is_object() ? file.get_object() : json::object();
    info.files.push_back({string_at(entry, "rfilename"), size_at(entry, "size")});
  }
  info.is_public = is_false(*o, "private") && is_false(*o, "gated");
  return info;
}

std::string strip_etag(std::string etag) {
  if (etag.starts_with("W/")) etag.erase(0, 2);
  if (etag.size() >= 2 && etag.front() == '"' && etag.back() == '"') {
    etag = etag.substr(1, etag.size() - 2);
  }
  return etag;
}

// One resolve() on its way.
class Resolve {
 public:
  Resolve(const HubSource::Options& options, HubName name, std::string token,
          const FetchControl& control, RemoteKind wanted)
      : options_(options),
        wanted_(wanted),
        name_(std::move(name)),
        token_(std::move(token)),
        control_(control),
        cache_(options.cache_folder, name_.repo),
        label_("hub repository " + name_.repo),
        deadline_(label_, options.network.total_timeout, control.cancelled),
        http_(options.network, deadline_) {}

  Fetched offline() const {
    if (auto known = cached()) return *known;
    fail(Code::not_found,
         "{}: revision {} is not in the cache {}, and offline mode is on; unset HF_HUB_OFFLINE or "
         "fetch it before",
         label_, name_.revision, options_.cache_folder);
  }

  Fetched online() {
    const std::optional<Fetched> known = fallback();
    const std::optional<RepoInfo> info = ask(known.has_value());
    if (!info) return *known;
    RemoteFiles selected = select_files(info->files, wanted_, label_);
    std::vector<ListedFile>& files = selected.files;
    check_sizes(files, options_.limits, label_);
    Fetched result{
        .folder = cache_.snapshot(info->commit), .revision = info->commit, .kind = selected.kind};
    if (info->is_public && cache_.holds(info->commit, files)) {
      remember(*info);
      return result;
    }
    // The files, too, are asked for with this token: a gated repository shows its name to everyone.
    std::vector<HubCache::Blob> blobs;
    for (ListedFile& file : files) {
      blobs.push_back(find(info->commit, file));
      file.size = blobs.back().size;
    }
    check_sizes(files, options_.limits, label_);
    if (cache_.holds(info->commit, files)) {
      remember(*info);
      return result;
    }
    cache_.make(info->commit);
    cache_.set_restricted(!info->is_public);
    result.downloaded_bytes = fetch(info->commit, selected, blobs);
    cache_.set_commit(name_.revision, info->commit);
    return result;
  }

 private:
  std::string repo_url() const { return options_.endpoint + "/" + name_.repo; }
  std::string file_url(const std::string& commit, const std::string& file) const {
    return repo_url() + "/resolve/" + commit + "/" + percent_encode(file, true);
  }
  std::string label_of(const std::string& file) const { return quote(file) + " of " + label_; }

  FetchRequest request(std::string url) const {
    FetchRequest request{.url = std::move(url)};
    if (!token_.empty()) request.secret_headers = {{"Authorization", "Bearer " + token_}};
    return request;
  }

  std::optional<Fetched> cached() const {
    const auto commit = cache_.commit_of(name_.revision);
    if (!commit) return std::nullopt;
    const auto kind = cache_.complete_snapshot(*commit, wanted_);
    if (!kind) return std::nullopt;
    return Fetched{.folder = cache_.snapshot(*commit), .revision = *commit, .kind = *kind};
  }

  // What may be given out without the hub's word.
  std::optional<Fetched> fallback() const {
    if (cache_.is_restricted()) return std::nullopt;
    try {
      return cached();
    } catch (const Error&) {
      return std::nullopt;  // the hub may have something better
    }
  }

  // None where the hub cannot be reached and the cache may answer instead.
  std::optional<RepoInfo> ask(bool cache_may_answer) {
    FetchRequest r = request(options_.endpoint + "/api/models/" + name_.repo + "/revision/" +
                             percent_encode(name_.revision, false) + "?blobs=true");
    r.max_body_bytes = options_.limits.max_listing_bytes;
    const int attempts = cache_may_answer ? 1 : options_.network.attempts;
    const FetchResponse response = http_.send_patiently(r, attempts);
    if (response.ok()) return parse_info(response.body, label_, options_.limits);
    if (response.retryable && cache_may_answer) return std::nullopt;
    refuse(response);
    fail(Code::unavailable,
         "{}: {}; it is not in the cache {} for all to use. Try again later, or set "
         "HF_HUB_OFFLINE=1 to use what the cache has",
         label_, response.describe(), options_.cache_folder);
  }

  // Size and hash of a file.
  HubCache::Blob find(const std::string& commit, const ListedFile& file) {
    FetchRequest r = request(file_url(commit, file.name));
    r.head = true;
    // The hub answers for files in a store elsewhere by itself, in the redirect.
    r.follow = [](const FetchResponse& redirect) {
      return redirect.header("x-linked-etag").empty();
    };
    const FetchResponse response = http_.send_patiently(r, options_.network.attempts);
    const bool is_answer = response.failure.empty() && response.status < 400;
    const std::string label = label_of(file.name);
    if (!is_answer) {
      refuse(response);
      fail(Code::unavailable, "{}: {}; try again later", label, response.describe());
    }
    const std::string found = response.header("x-repo-commit");
    if (!found.empty() && found != commit) {
      fail(Code::bad_file, "{}: expected commit {}, the hub answered for {}", label, commit,
           quote(found));
    }
    const std::string linked = response.header("x-linked-etag");
    HubCache::Blob blob{
        .name = file.name,
        .etag = strip_etag(linked.empty() ? response.header("etag") : linked),
        .size = response.status == 200 && linked.empty() ? response.content_length() : -1};
    static_cast<void>(ContentHash(blob.etag, label));  // or the name of a blob could be anything
    FetchResponse size;                                // a Content-Length by another name
    size.headers["content-length"] = response.header("x-linked-size");
    if (size.content_length() >= 0) blob.size = size.content_length();
    if (blob.size < 0) blob.size = file.size;
    return blob;
  }

  int64_t fetch(const std::string& commit, const RemoteFiles& selected,
                const std::vector<HubCache::Blob>& blobs) {
    int64_t missing = 0;
    for (const HubCache::Blob& blob : blobs) {
      if (!has(blob)) missing += missing_of(blob);
    }
    require_free_space(options_.cache_folder, missing, options_.limits.min_free_bytes);
    tell_plan(control_, selected, missing);
    const bool must_be_speculator =
        selected.kind == RemoteKind::adapter && blobs.front().name != "adapter_config.json";
    const int64_t total = total_bytes(selected.files);
    int64_t received = 0, before = 0;
    for (const HubCache::Blob& blob : blobs) {  // the configuration comes first
      received += fetch(commit, blob, control_of_file(control_, before, total));
      before += std::max<int64_t>(blob.size, 0);
      if (must_be_speculator && blob.name == "config.json") {
        require_speculator(cache_.blob_path(blob.etag), label_);
      }
    }
    // And is shown last: without it the folder is no adapter.
    for (auto blob = blobs.rbegin(); blob != blobs.rend(); ++blob) cache_.link(commit, *blob);
    return received;
  }

  // Without what an earlier try has left.
  int64_t missing_of(const HubCache::Blob& blob) const {
    const int64_t here = file_size_of(partial_of(blob));
    return std::max<int64_t>(here > blob.size ? blob.size : blob.size - std::max<int64_t>(here, 0),
                             0);
  }

  std::string partial_of(const HubCache::Blob& blob) const {
    return cache_.blob_path(blob.etag) + ".incomplete";
  }

  bool has(const HubCache::Blob& blob) const {
    const int64_t size = file_size_of(cache_.blob_path(blob.etag));
    return size >= 0 && (blob.size < 0 || size == blob.size);
  }

  int64_t fetch(const std::string& commit, const HubCache::Blob& blob,
                const FetchControl& control) {
    if (has(blob)) return 0;
    const FileLock lock(cache_.lock_path(blob.etag), deadline_);
    if (has(blob)) return 0;  // another process was faster
    const std::string path = cache_.blob_path(blob.etag);
    const std::string label = label_of(blob.name);
    const RemoteFile file{
        .name = blob.name,
        .label = label,
        .path = path,
        .partial = partial_of(blob),
        .size = blob.size,
        .max_bytes = max_bytes_of(blob.name, options_.limits),
        .hash = ContentHash(blob.etag, label),
        .request = [&] { return request(file_url(commit, blob.name)); },
        .refuse = [this](const FetchResponse& response) { refuse(response); },
    };
    return download(http_, file, control);
  }

  // Throws for the statuses that say something about the repository.
  void refuse(const FetchResponse& response) const {
    if (!response.failure.empty()) return;
    if (response.status == 401 || response.status == 403) {
      fail(Code::invalid_argument,
           "{}: {}; it is private, does not exist, or is gated: accept terms at {} and set "
           "HF_TOKEN, "
           "or send a token that may read it as api_token",
           label_, response.describe(), repo_url());
    }
    if (response.status == 404 || response.status == 410) {
      fail(Code::not_found, "{}: {}; there is no such repository, revision {} or file", label_,
           response.describe(), quote(name_.revision));
    }
  }

  // What is known now, for the time when the hub cannot be reached. The cache may be read-only:
  // that is no reason not to use it.
  void remember(const RepoInfo& info) const {
    try {
      cache_.set_restricted(!info.is_public);
      cache_.set_commit(name_.revision, info.commit);
    } catch (const Error&) {
    }
  }

  const HubSource::Options& options_;
  RemoteKind wanted_;
  HubName name_;
  std::string token_;
  const FetchControl& control_;
  HubCache cache_;
  std::string label_;
  Deadline deadline_;
  HttpClient http_;
};

}  // namespace

HubSource::HubSource(Options options) : options_(std::move(options)) {
  LORRY_CHECK(!options_.cache_folder.empty());
  static_cast<void>(parse_url(options_.endpoint, "the hub's endpoint (HF_ENDPOINT)"));
  while (options_.endpoint.ends_with('/')) options_.endpoint.pop_back();
}

Fetched HubSource::resolve(const std::string& name, const std::string& token,
                           const FetchControl& control, RemoteKind wanted) const {
  Resolve resolve(options_, HubName::parse(name), token.empty() ? options_.default_token : token,
                  control, wanted);
  return options_.offline ? resolve.offline() : resolve.online();
}

}  // namespace lorry
