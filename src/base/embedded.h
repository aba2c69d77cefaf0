// EmbeddedFile: a file that the build put into the binary (lorry_embed in cmake/lorry.cmake).
#pragma once
#include <cstddef>
#include <string_view>

namespace lorry {

// As cmake/embed.cmake lays it out.
struct EmbeddedFile {
  const char* name;  // without a folder
  const char* begin;
  const char* end;
  const char* digest;  // SHA-256, 64 hexadecimal digits

  std::string_view content() const { return {begin, static_cast<size_t>(end - begin)}; }
};

}  // namespace lorry
