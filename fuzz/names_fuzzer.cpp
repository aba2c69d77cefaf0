// Names from clients and servers that become paths and addresses: adapters, folders below a root,
// repositories, buckets, URLs, redirects, listings.
#include <atomic>
#include <filesystem>

#include "adapters/names.h"
#include "base/text.h"
#include "fetch/hub.h"
#include "fetch/remote_files.h"
#include "fetch/s3.h"
#include "fetch/s3_xml.h"
#include "fetch/url.h"
#include "fuzz.h"
#include "serve/http_head.h"

namespace {

using namespace lorry;  // NOLINT
namespace fs = std::filesystem;

// A root with two adapters, and links that lead out of it.
struct World {
  World()
      : hub({.endpoint = "http://127.0.0.1:9", .cache_folder = cache.path(), .offline = true}),
        s3({.endpoint = "http://127.0.0.1:9", .cache_folder = cache.path()}) {
    fs::create_directories(root + "/org/name");
    fs::create_directories(root + "/a");
    fs::create_directories(folder.path() + "/outside");
    fs::create_symlink("../outside", root + "/out");
    fs::create_symlink("/etc", root + "/etc");
  }
  fuzz::TemporaryFolder folder, cache;
  std::string root = folder.path() + "/root";
  HubSource hub;
  S3Source s3;
};

void check_below(const std::string& root, const std::string& path) {
  const std::string real = fs::canonical(root).string();
  LORRY_CHECK(path == real || path.starts_with(real + "/"), "{} is out of the root", path);
}

void try_sources(const World& world, const std::string& name) {
  // No request is made: the one is offline, the other cancelled.
  static const std::atomic<bool> cancelled{true};
  fuzz::may_refuse([&] { world.hub.resolve(name, {}, {.cancelled = &cancelled}); });
  fuzz::may_refuse([&] { world.s3.resolve(name, {.cancelled = &cancelled}); });
}

void try_listing(std::string_view text) {
  std::vector<ListedFile> files;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    files.push_back({std::string(text.substr(at, end - at)), 1});
    at = end + 1;
  }
  for (const RemoteKind wanted : {RemoteKind::adapter, RemoteKind::model, RemoteKind::any}) {
    fuzz::may_refuse([&] {
      for (const ListedFile& file : select_files(files, wanted, "a listing").files) {
        LORRY_CHECK(file.name.find('/') == file.name.npos && file.name != "..", "{}", file.name);
      }
    });
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const World world;
  const std::string_view text = fuzz::text_of(data, size);
  const std::string name(text);
  fuzz::may_refuse([&] { check_adapter_name(text); });
  fuzz::may_refuse([&] { check_below(world.root, local_adapter_folder(world.root, name)); });
  fuzz::may_refuse([&] { check_below(world.root, folder_below(world.root, name)); });
  try_sources(world, name);
  try_listing(text);
  fuzz::may_refuse([&] { parse_s3_page(text, "a page"); });
  parse_s3_error(text);
  const Url from = parse_url("https://example.org/a/b?c=d", "it");
  fuzz::may_refuse([&] { parse_url(parse_url(name, "it").text(), "it"); });
  fuzz::may_refuse(
      [&] { LORRY_CHECK(redirect_target(from, name).scheme == "https", "from https to http"); });
  std::string decoded;
  LORRY_CHECK(percent_decode(percent_encode(text, false), &decoded) && decoded == text, "%");
  percent_decode(text, &decoded);
  is_loopback_host(text);
  return 0;
}
