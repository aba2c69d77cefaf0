#include "fetch/hub_cache.h"

#include <algorithm>
#include <filesystem>

#include <unistd.h>

#include "base/error.h"
#include "base/files.h"
#include "base/json.h"
#include "base/text.h"
#include "fetch/cache_files.h"
#include "fetch/file_hash.h"

namespace lorry {

namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxPartBytes = 96;
constexpr size_t kMaxRevisionBytes = 255;

// One part of a repository's name or of a revision: a name of a folder that is no trick.
bool is_part(std::string_view s) {
  if (s.empty() || s.size() > kMaxPartBytes) return false;
  if (!is_letter_or_digit(s.front()) && s.front() != '_') return false;
  return std::all_of(s.begin(), s.end(), [](char c) {
    return is_letter_or_digit(c) || c == '_' || c == '-' || c == '.';
  });
}

std::vector<std::string_view> split(std::string_view s) {
  std::vector<std::string_view> parts;
  for (size_t at = 0; at <= s.size();) {
    const size_t end = std::min(s.find('/', at), s.size());
    parts.push_back(s.substr(at, end - at));
    at = end + 1;
  }
  return parts;
}

}  // namespace

HubName HubName::parse(const std::string& text) {
  const size_t at = text.find('@');
  HubName name{.repo = text.substr(0, at), .revision = "main"};
  if (at != std::string::npos) name.revision = text.substr(at + 1);
  const auto repo = split(name.repo);
  const auto revision = split(name.revision);
  // "--" stands for the slash in the cache's folder names.
  const bool good = repo.size() <= 2 && std::all_of(repo.begin(), repo.end(), is_part) &&
                    name.repo.find("--") == std::string::npos &&
                    name.repo.find("..") == std::string::npos &&
                    name.revision.size() <= kMaxRevisionBytes &&
                    std::all_of(revision.begin(), revision.end(), is_part);
  if (!good) {
    fail(Code::invalid_argument,
         "{}: expected the name of a hub repository, org/name or org/name@revision, of letters, "
         "digits, \"_\", \"-\" and \".\"",
         quote(text));
  }
  return name;
}

bool is_commit(const std::string& revision) { return is_hex(revision, 40); }

HubCache::HubCache(const std::string& cache_folder, const std::string& repo) {
  std::string name = "models--" + repo;
  if (const size_t slash = name.find('/'); slash != name.npos) name.replace(slash, 1, "--");
  folder_ = join_path(cache_folder, name);
  locks_ = join_path(join_path(cache_folder, ".locks"), name);
}

std::string HubCache::snapshot(const std::string& commit) const {
  return folder_ + "/snapshots/" + commit;
}

std::string HubCache::blob_path(const std::string& etag) const {
  return folder_ + "/blobs/" + etag;
}

std::string HubCache::lock_path(const std::string& etag) const {
  return locks_ + "/" + etag + ".lock";
}

std::optional<std::string> HubCache::commit_of(const std::string& revision) const {
  if (is_commit(revision)) return revision;
  const std::string path = folder_ + "/refs/" + revision;
  if (!file_exists(path)) return std::nullopt;
  std::string commit = read_file(path, 4096);
  while (!commit.empty() && (commit.back() == '\n' || commit.back() == '\r')) commit.pop_back();
  if (!is_commit(commit)) return std::nullopt;
  return commit;
}

namespace {

// Of the weights that select_files has found in a model's folder. Others that share the cache show
// each file as it comes, so shards may be missing; the index names them all.
bool has_all_shards(const std::string& folder) {
  if (file_exists(join_path(folder, "model.safetensors"))) return true;
  const std::string path = join_path(folder, "model.safetensors.index.json");
  if (!file_exists(path)) return false;
  const json::value index = parse_json_file(path);
  const json::object* o = index.if_object();
  const json::value* map = o == nullptr ? nullptr : o->if_contains("weight_map");
  if (map == nullptr || !map->is_object()) return false;
  const json::object& shards = map->get_object();
  return std::all_of(shards.begin(), shards.end(), [&](const auto& entry) {
    return entry.value().is_string() &&
           file_size_of(join_path(folder, std::string(entry.value().get_string()))) >= 0;
  });
}

}  // namespace

std::optional<RemoteKind> HubCache::complete_snapshot(const std::string& commit,
                                                      RemoteKind wanted) const {
  const std::string folder = snapshot(commit);
  std::vector<ListedFile> listing;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename();
    const int64_t size = file_size_of(join_path(folder, name));
    if (size >= 0) listing.push_back({name, size});
  }
  if (error || listing.empty()) return std::nullopt;
  try {
    const RemoteFiles files = select_files(listing, wanted, folder);
    if (files.kind == RemoteKind::model && !has_all_shards(folder)) return std::nullopt;
    return files.kind;
  } catch (const Error& e) {
    if (e.code() == Code::not_found) return std::nullopt;
    throw;
  }
}

bool HubCache::holds(const std::string& commit, const std::vector<ListedFile>& files) const {
  return std::all_of(files.begin(), files.end(), [&](const ListedFile& file) {
    const int64_t size = file_size_of(join_path(snapshot(commit), file.name));
    return size >= 0 && (file.size < 0 || size == file.size);
  });
}

bool HubCache::is_restricted() const { return file_exists(folder_ + "/.lorry_restricted"); }

void HubCache::make(const std::string& commit) const {
  make_folders(folder_ + "/blobs");
  make_folders(folder_ + "/refs");
  make_folders(snapshot(commit));
  make_folders(locks_);
}

void HubCache::set_restricted(bool restricted) const {
  if (restricted == is_restricted()) return;
  const std::string path = folder_ + "/.lorry_restricted";
  if (restricted) {
    write_file(path, "");
  } else {
    unlink(path.c_str());
  }
}

void HubCache::set_commit(const std::string& revision, const std::string& commit) const {
  if (commit_of(revision) == commit) return;
  const std::string path = folder_ + "/refs/" + revision;
  make_folders(fs::path(path).parent_path());
  write_file(path, commit);
}

void HubCache::link(const std::string& commit, const Blob& blob) const {
  const std::string path = join_path(snapshot(commit), blob.name);
  make_link("../../blobs/" + blob.etag, path);
}

}  // namespace lorry
