#include "adapters/names.h"

#include <cstdlib>
#include <memory>

#include "base/error.h"
#include "base/files.h"
#include "base/text.h"

namespace lorry {

namespace {

bool is_word(char c) { return is_letter_or_digit(c) || c == '_'; }

// [\w.-]+ and neither "." nor "..".
bool is_part(std::string_view s) {
  if (s.empty() || s == "." || s == "..") return false;
  for (const char c : s) {
    if (!is_word(c) && c != '.' && c != '-') return false;
  }
  return true;
}

// [\w./-]+ whose parts are parts.
bool is_revision(std::string_view s) {
  for (size_t slash = 0; (slash = s.find('/')) != s.npos; s.remove_prefix(slash + 1)) {
    if (!is_part(s.substr(0, slash))) return false;
  }
  return is_part(s);
}

bool is_name(std::string_view s) {
  if (s.size() > kMaxAdapterName || s.empty()) return false;
  if (!is_letter_or_digit(s.front())) return false;
  if (const size_t at = s.find('@'); at != s.npos) {
    if (!is_revision(s.substr(at + 1))) return false;
    s = s.substr(0, at);
  }
  if (const size_t slash = s.find('/'); slash != s.npos) {
    if (!is_part(s.substr(slash + 1))) return false;
    s = s.substr(0, slash);
  }
  return is_part(s);
}

// The start of a name that may hold anything, as printable ASCII.
std::string shown(std::string_view name) {
  std::string out;
  for (const char c : name.substr(0, 64)) {
    const bool printable = c >= 0x20 && c < 0x7f;
    out += printable
               ? std::string(1, c)
               : fmt::format("\\x{:02x}", static_cast<unsigned>(static_cast<unsigned char>(c)));
  }
  return name.size() > 64 ? out + "..." : out;
}

std::string real_path(const std::string& path) {
  const std::unique_ptr<char, decltype(&std::free)> real(realpath(path.c_str(), nullptr),
                                                         &std::free);
  return real ? std::string(real.get()) : std::string();
}

// The real path of `path` (from the root, where it is not absolute), which is below the root.
std::string below(const std::string& root, const std::string& path, const std::string& what) {
  const std::string real_root = real_path(root);
  if (real_root.empty()) fail(Code::not_found, "adapter root '{}' does not exist", root);
  if (path.find('\0') != path.npos) fail(Code::invalid_argument, "{} holds a NUL byte", what);
  const std::string real = real_path(path.starts_with('/') ? path : join_path(real_root, path));
  const bool inside = real.starts_with(join_path(real_root, ""));
  if (!real.empty() && !inside) {
    fail(Code::invalid_argument, "{} leads out of the adapter root", what);
  }
  if (real.empty() || !is_directory(real)) {
    fail(Code::not_found, "{} not found in the adapter root", what);
  }
  return real;
}

}  // namespace

void check_adapter_name(std::string_view name) {
  if (is_name(name)) return;
  fail(Code::invalid_argument,
       "adapter name '{}' is not valid: expected letters, digits, '_', '.' and '-', at most one "
       "'/', optionally '@' and a revision, {} bytes in all",
       shown(name), kMaxAdapterName);
}

std::string local_adapter_folder(const std::string& root, const std::string& name) {
  check_adapter_name(name);
  if (name.find('@') != name.npos) {
    fail(Code::not_found, "adapter '{}' not found: local adapters have no revisions", name);
  }
  return below(root, name, fmt::format("adapter '{}'", name));
}

std::string folder_below(const std::string& root, const std::string& path) {
  // "/a/../b" and links are seen through by below().
  return below(root, path, fmt::format("folder {}", quote(path)));
}

}  // namespace lorry
