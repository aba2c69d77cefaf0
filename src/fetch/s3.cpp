#include "fetch/s3.h"

#include <algorithm>
#include <filesystem>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/files.h"
#include "base/text.h"
#include "fetch/cache_files.h"
#include "fetch/download.h"
#include "fetch/file_hash.h"
#include "fetch/http_client.h"
#include "fetch/remote_files.h"
#include "fetch/s3_xml.h"

namespace lorry {

namespace {

namespace fs = std::filesystem;

constexpr int kMaxPages = 1000;

struct S3Name {
  std::string bucket;
  std::string prefix;  // without slashes at its ends; empty: the bucket itself
};

bool is_bucket(const std::string& s) {
  const auto is_good = [](char c) {
    return is_letter_or_digit(c) || c == '-' || c == '_' || c == '.';
  };
  return s.size() >= 3 && s.size() <= 63 && std::all_of(s.begin(), s.end(), is_good) &&
         s.front() != '.' && s.find("..") == s.npos;
}

bool is_prefix(const std::string& s) {
  if (s.size() > 900) return false;
  if (s.empty()) return true;
  for (size_t at = 0; at <= s.size();) {
    const size_t end = std::min(s.find('/', at), s.size());
    const std::string part = s.substr(at, end - at);
    if (part.empty() || part == "." || part == "..") return false;
    at = end + 1;
  }
  return std::none_of(s.begin(), s.end(),
                      [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; });
}

S3Name parse_name(const std::string& text) {
  std::string_view rest = text;
  if (rest.starts_with("s3://")) rest.remove_prefix(5);
  while (rest.ends_with('/')) rest.remove_suffix(1);
  const size_t slash = std::min(rest.find('/'), rest.size());
  S3Name name{.bucket = std::string(rest.substr(0, slash)), .prefix = {}};
  if (slash < rest.size()) name.prefix = rest.substr(slash + 1);
  if (!is_bucket(name.bucket) || !is_prefix(name.prefix)) {
    fail(Code::invalid_argument, "{}: expected bucket/prefix or s3://bucket/prefix", quote(text));
  }
  return name;
}

// One resolve() on its way.
class Resolve {
 public:
  Resolve(const S3Source::Options& options, S3Name name, const FetchControl& control,
          RemoteKind wanted)
      : options_(options),
        wanted_(wanted),
        name_(std::move(name)),
        control_(control),
        label_(fmt::format("S3 {}/{}", name_.bucket, name_.prefix)),
        deadline_(label_, options.network.total_timeout, control.cancelled),
        http_(options.network, deadline_) {}

  Fetched run() {
    const std::vector<S3Object> objects = list();
    RemoteFiles selected;
    const std::vector<S3Object> files = select(objects, selected);
    const std::string digest = digest_of(files);
    const std::string bucket = "s3--" + name_.bucket;
    const std::string parent = join_path(options_.cache_folder, bucket);
    const std::string locks = join_path(join_path(options_.cache_folder, ".locks"), bucket);
    Fetched result{.folder = join_path(parent, digest), .revision = digest, .kind = selected.kind};
    if (holds(result.folder, files)) return result;
    make_folders(parent);
    make_folders(locks);
    const FileLock lock(join_path(locks, digest + ".lock"), deadline_);
    if (holds(result.folder, files)) return result;  // another process was faster
    const std::string growing = result.folder + ".incomplete";
    std::error_code error;
    if (fs::exists(result.folder, error)) {  // somebody removed a file from it
      fs::remove_all(growing, error);
      fs::rename(result.folder, growing, error);
    }
    make_folders(growing);
    result.downloaded_bytes = fetch(growing, selected, files);
    fs::rename(growing, result.folder, error);
    if (error) {
      fail(Code::invalid_argument, "{}: cannot rename {} to it: {}", result.folder, growing,
           error.message());
    }
    return result;
  }

 private:
  // A GET, signed now.
  FetchRequest request(const std::string& key, const QueryParameters& query) const {
    Url url = parse_url(options_.endpoint, "the S3 endpoint");
    if (url.path.ends_with('/')) url.path.pop_back();
    url.path += "/" + name_.bucket + (key.empty() ? "" : "/" + percent_encode(key, true));
    url.query = canonical_query(query);
    FetchRequest request{.url = url.text()};
    request.max_redirects = 0;  // a signature holds for one host
    if (!options_.credentials.access_key.empty()) {
      request.secret_headers =
          sign_v4({.url = url,
                   .region = options_.region,
                   .date_time = amz_date_time(std::chrono::system_clock::now())},
                  options_.credentials);
    }
    return request;
  }

  std::string folder_key() const { return name_.prefix.empty() ? "" : name_.prefix + "/"; }

  // The objects directly below the prefix.
  std::vector<S3Object> list() {
    std::vector<S3Object> objects;
    QueryParameters query = {{"list-type", "2"}, {"delimiter", "/"}, {"prefix", folder_key()}};
    for (int n_pages = 1;; ++n_pages) {
      FetchRequest r = request("", query);
      r.max_body_bytes = options_.limits.max_listing_bytes;
      const FetchResponse response = http_.send_patiently(r, options_.network.attempts);
      if (!response.ok()) refuse(response);
      S3Page page = parse_s3_page(response.body, label_);
      if (n_pages > kMaxPages ||
          objects.size() + page.objects.size() > options_.limits.max_listed_files) {
        fail(Code::bad_file, "{}: lists more than {} objects or {} pages", label_,
             options_.limits.max_listed_files, kMaxPages);
      }
      std::move(page.objects.begin(), page.objects.end(), std::back_inserter(objects));
      if (page.next_token.empty()) break;
      query.resize(3);
      query.emplace_back("continuation-token", page.next_token);
    }
    if (objects.empty()) {
      fail(Code::not_found, "{}: there are no objects below {}", label_, quote(folder_key()));
    }
    return objects;
  }

  // Those that are wanted, in their order. Throws as select_files and check_sizes do.
  std::vector<S3Object> select(const std::vector<S3Object>& objects, RemoteFiles& files) const {
    std::vector<ListedFile> listing;
    const std::string folder = folder_key();
    for (const S3Object& object : objects) {
      if (!object.key.starts_with(folder)) {
        fail(Code::bad_file, "{}: lists {}, which is not below it", label_, quote(object.key));
      }
      // Some tools make an object that stands for the folder itself.
      if (object.key != folder) listing.push_back({object.key.substr(folder.size()), object.size});
    }
    files = select_files(listing, wanted_, label_);
    check_sizes(files.files, options_.limits, label_);
    std::vector<S3Object> selected;
    for (const ListedFile& file : files.files) {
      const auto found = std::find_if(objects.begin(), objects.end(), [&](const S3Object& o) {
        return o.key == folder + file.name;
      });
      if (found->size < 0) fail(Code::bad_file, "{}: {} has no size", label_, quote(found->key));
      selected.push_back({file.name, found->etag, found->size});
    }
    return selected;
  }

  std::string digest_of(const std::vector<S3Object>& files) const {
    std::string text = fmt::format("{}\n{}\n{}\n", options_.endpoint, name_.bucket, name_.prefix);
    for (const S3Object& f : files) text += fmt::format("{}\n{}\n{}\n", f.key, f.size, f.etag);
    return sha256_hex(text);
  }

  static std::string partial_of(const std::string& path) { return path + ".incomplete"; }

  static bool holds(const std::string& folder, const std::vector<S3Object>& files) {
    return std::all_of(files.begin(), files.end(), [&](const S3Object& f) {
      return file_size_of(join_path(folder, f.key)) == f.size;
    });
  }

  int64_t fetch(const std::string& folder, const RemoteFiles& selected,
                const std::vector<S3Object>& files) {
    int64_t missing = 0;
    for (const S3Object& f : files) {
      const std::string path = join_path(folder, f.key);
      if (file_size_of(path) == f.size) continue;
      missing += f.size - std::clamp<int64_t>(file_size_of(partial_of(path)), 0, f.size);
    }
    require_free_space(folder, missing, options_.limits.min_free_bytes);
    tell_plan(control_, selected, missing);
    const bool must_be_speculator =
        selected.kind == RemoteKind::adapter && files.front().key != "adapter_config.json";
    const int64_t total = total_bytes(selected.files);
    int64_t received = 0, before = 0;
    for (const S3Object& f : files) {  // the configuration comes first
      const std::string path = join_path(folder, f.key);
      if (file_size_of(path) != f.size) {
        received += fetch_one(path, f, control_of_file(control_, before, total));
      }
      before += f.size;
      if (must_be_speculator && f.key == "config.json") require_speculator(path, label_);
    }
    return received;
  }

  int64_t fetch_one(const std::string& path, const S3Object& object, const FetchControl& control) {
    const RemoteFile file{
        .name = object.key,
        .label = quote(object.key) + " of " + label_,
        .path = path,
        .partial = partial_of(path),
        .size = object.size,
        .max_bytes = max_bytes_of(object.key, options_.limits),
        .request =
            [&] {
              FetchRequest r = request(folder_key() + object.key, {});
              if (!object.etag.empty()) r.headers = {{"If-Match", "\"" + object.etag + "\""}};
              return r;
            },
        .refuse = [this](const FetchResponse& response) { refuse(response); },
    };
    return download(http_, file, control);
  }

  [[noreturn]] void refuse(const FetchResponse& response) const {
    std::string found = response.describe();
    const std::string code = parse_s3_error(response.body);
    if (!code.empty()) found += " (" + quote(code, 64) + ")";
    if (response.retryable || !response.failure.empty()) {
      fail(Code::unavailable, "{}: {}; try again later", label_, found);
    }
    if (response.status == 404) {
      fail(Code::not_found, "{}: {}; there is no such bucket or object", label_, found);
    }
    if (response.status == 412) {
      fail(Code::unavailable, "{}: {}; it was changed while it was being fetched: try again",
           label_, found);
    }
    if (response.status >= 300 && response.status < 400) {
      const std::string region = response.header("x-amz-bucket-region");
      fail(Code::invalid_argument, "{}: {}; the bucket is elsewhere{}: set its region and endpoint",
           label_, found, region.empty() ? "" : ", in region " + quote(region));
    }
    fail(Code::invalid_argument,
         "{}: {}; check the access key, the secret key, the region and the bucket's policy", label_,
         found);
  }

  const S3Source::Options& options_;
  RemoteKind wanted_;
  S3Name name_;
  const FetchControl& control_;
  std::string label_;
  Deadline deadline_;
  HttpClient http_;
};

}  // namespace

S3Source::S3Source(Options options) : options_(std::move(options)) {
  LORRY_CHECK(!options_.cache_folder.empty());
  if (options_.endpoint.empty()) {
    options_.endpoint = "https://s3." + options_.region + ".amazonaws.com";
  }
  static_cast<void>(parse_url(options_.endpoint, "the S3 endpoint"));
}

Fetched S3Source::resolve(const std::string& name, const FetchControl& control,
                          RemoteKind wanted) const {
  return Resolve(options_, parse_name(name), control, wanted).run();
}

}  // namespace lorry
