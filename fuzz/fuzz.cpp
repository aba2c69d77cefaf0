#include "fuzz.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>

namespace lorry::fuzz {

TemporaryFolder::TemporaryFolder()
    : path_((std::filesystem::temp_directory_path() / "lorry-fuzz-XXXXXX").string()) {
  LORRY_CHECK(mkdtemp(path_.data()) != nullptr, "no temporary folder");
}

TemporaryFolder::~TemporaryFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

std::string TemporaryFolder::write(const std::string& name, std::string_view content) const {
  std::string path = path_ + "/" + name;
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(content.data(), static_cast<std::streamsize>(content.size()));
  file.close();
  LORRY_CHECK(file.good(), "{} cannot be written", path);
  return path;
}

}  // namespace lorry::fuzz
