#include "cli/sources.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <optional>

#include "base/error.h"
#include "base/files.h"
#include "base/text.h"
#include "cli/environment.h"
#include "fetch/hub_cache.h"

namespace lorry {

namespace {

constexpr const char* kS3 = "s3://";

std::string first_of(std::initializer_list<const char*> variables, std::string otherwise = {}) {
  for (const char* name : variables) {
    if (const auto value = environment(name)) return *value;
  }
  return otherwise;
}

std::string below(const std::string& folder, const std::string& name) {
  return folder.empty() ? std::string() : join_path(folder, name);
}

bool is_true(const std::string& value) {
  const std::string text = lower_case(value);
  return text == "1" || text == "true" || text == "yes" || text == "on";
}

std::string token_in(const std::string& file) {
  if (file.empty() || !file_exists(file)) return {};
  std::string text = read_file(file, 4096);
  while (!text.empty() && (text.back() == '\n' || text.back() == '\r' || text.back() == ' ')) {
    text.pop_back();
  }
  return text;
}

[[noreturn]] void no_cache(const char* variable) {
  fail(Code::unavailable, "there is no folder to keep what is downloaded: set {} or HOME",
       variable);
}

}  // namespace

HubSource::Options hub_options(const std::string& cache) {
  const std::string home = first_of({"HF_HOME"}, below(cache_folder(), "huggingface"));
  HubSource::Options o;
  o.endpoint = first_of({"HF_ENDPOINT"}, o.endpoint);
  o.cache_folder = cache.empty() ? first_of({"HF_HUB_CACHE"}, below(home, "hub")) : cache;
  o.offline = is_true(first_of({"HF_HUB_OFFLINE"}));
  o.default_token = first_of({"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"});
  if (o.default_token.empty()) {
    o.default_token = token_in(first_of({"HF_TOKEN_PATH"}, below(home, "token")));
  }
  return o;
}

S3Source::Options s3_options() {
  S3Source::Options o;
  o.endpoint = first_of({"AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "S3_ENDPOINT_URL"});
  o.region = first_of({"AWS_REGION", "AWS_DEFAULT_REGION"}, o.region);
  o.credentials.access_key = first_of({"AWS_ACCESS_KEY_ID"});
  o.credentials.secret_key = first_of({"AWS_SECRET_ACCESS_KEY"});
  o.credentials.session_token = first_of({"AWS_SESSION_TOKEN"});
  o.cache_folder = below(cache_folder(), "lorry/s3");
  return o;
}

namespace {

// One who types a name waits for it, and knows its size and the disk.
template <class Options>
Options without_limits(Options o) {
  o.network.total_timeout = std::chrono::hours(24 * 7);
  o.limits.max_file_bytes = o.limits.max_total_bytes = int64_t{1} << 50;
  return o;
}

}  // namespace

bool is_remote_name(const std::string& text) {
  if (text.starts_with(kS3)) return true;
  const std::string repo = text.substr(0, text.find('@'));
  if (std::count(repo.begin(), repo.end(), '/') != 1 || repo.starts_with('~')) return false;
  try {
    static_cast<void>(HubName::parse(text));
  } catch (const Error&) {
    return false;
  }
  return true;
}

Fetched fetch_remote(const RemoteName& what, RemoteKind wanted, const FetchControl& control) {
  if (what.name.starts_with(kS3)) {
    if (!what.revision.empty()) {
      fail(Code::invalid_argument, "--revision {}: S3 has no revisions; leave it out",
           quote(what.revision));
    }
    S3Source::Options o = without_limits(s3_options());
    if (!what.cache.empty()) o.cache_folder = what.cache;
    if (o.cache_folder.empty()) no_cache("XDG_CACHE_HOME");
    return S3Source(std::move(o)).resolve(what.name, control, wanted);
  }
  const bool has_revision = what.name.find('@') != std::string::npos;
  if (has_revision && !what.revision.empty()) {
    fail(Code::invalid_argument, "{}: --revision {} is a second revision; leave one out",
         quote(what.name), quote(what.revision));
  }
  const std::string name = what.revision.empty() ? what.name : what.name + "@" + what.revision;
  HubSource::Options o = without_limits(hub_options(what.cache));
  if (o.cache_folder.empty()) no_cache("HF_HUB_CACHE");
  return HubSource(std::move(o)).resolve(name, "", control, wanted);
}

AdapterFetch make_fetch(const std::string& hub_cache) {
  // Without a folder for downloads a source is missing only once it is asked.
  const HubSource::Options of_hub = hub_options(hub_cache);
  const S3Source::Options of_s3 = s3_options();
  std::shared_ptr<const HubSource> hub;
  std::shared_ptr<const S3Source> s3;
  if (!of_hub.cache_folder.empty()) hub = std::make_shared<HubSource>(of_hub);
  if (!of_s3.cache_folder.empty()) s3 = std::make_shared<S3Source>(of_s3);
  return [hub, s3](const AdapterPart& part, const std::atomic<bool>& cancelled) {
    FetchControl control;
    control.cancelled = &cancelled;
    if (part.source == AdapterSource::s3) {
      if (!s3) no_cache("XDG_CACHE_HOME");
      return s3->resolve(part.name, control).folder;
    }
    if (!hub) no_cache("HF_HUB_CACHE");
    return hub->resolve(part.name, part.api_token, control).folder;
  };
}

}  // namespace lorry
