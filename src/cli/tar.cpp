#include "cli/tar.h"

#include <charconv>
#include <cstring>
#include <string_view>

#include "base/error.h"

namespace lorry {

namespace {

constexpr size_t kBlock = 512;

// A field of the header: text up to its first NUL.
std::string_view field(std::span<const std::byte> header, size_t offset, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(header.data()) + offset, size);
  return text.substr(0, text.find('\0'));
}

size_t octal(std::string_view text) {
  while (text.starts_with(' ')) text.remove_prefix(1);
  size_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, 8);
  LORRY_CHECK(error == std::errc() && (end == text.data() + text.size() || *end == ' '));
  return value;
}

bool is_plain(const std::string& path) {
  return !path.empty() && path.front() != '/' && ("/" + path + "/").find("/../") == path.npos;
}

}  // namespace

std::vector<TarFile> read_tar(std::span<const std::byte> archive) {
  std::vector<TarFile> files;
  for (size_t at = 0; at + kBlock <= archive.size();) {
    const auto header = archive.subspan(at, kBlock);
    const std::string_view name = field(header, 0, 100);
    if (name.empty()) break;  // the end is marked by blocks of zeros
    const size_t size = octal(field(header, 124, 12));
    const char type = field(header, 156, 1).empty() ? '0' : field(header, 156, 1).front();
    at += kBlock;
    LORRY_CHECK(type == '0' || type == '5', "tar entry {} has type {}", name, type);
    LORRY_CHECK(size <= archive.size() - at, "tar entry {} is cut off", name);
    std::string path(name);
    LORRY_CHECK(is_plain(path), "tar entry {}", path);
    if (type == '0') files.push_back({std::move(path), archive.subspan(at, size)});
    at += (size + kBlock - 1) / kBlock * kBlock;
  }
  return files;
}

}  // namespace lorry
