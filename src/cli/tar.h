// Reads the tar archive that is compiled into the binary: plain files, short names.
#pragma once
#include <cstddef>
#include <span>
#include <string>
#include <vector>

namespace lorry {

struct TarFile {
  std::string path;  // relative, without "." and ".."
  std::span<const std::byte> content;
};

// The files of the archive; views into it. Aborts on an archive that our build does not make.
std::vector<TarFile> read_tar(std::span<const std::byte> archive);

}  // namespace lorry
