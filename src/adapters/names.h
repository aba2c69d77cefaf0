// Adapter names as requests give them, and the folders they may stand for. Pure functions apart
// from reading the file system; any thread.
#pragma once
#include <string>
#include <string_view>

namespace lorry {

constexpr size_t kMaxAdapterName = 256;

// The grammar [A-Za-z0-9][\w.-]*(/[\w.-]+)?(@[\w./-]+)?, without "." or ".." as a part, at most
// kMaxAdapterName bytes. Throws Error(invalid_argument).
void check_adapter_name(std::string_view name);

// The real path of the folder `name` inside `root`. Throws Error(invalid_argument) for a name out
// of the grammar or a link that leads out of the root, Error(not_found) where there is no folder.
std::string local_adapter_folder(const std::string& root, const std::string& name);

// The real path of a folder that a client names: `path` from `root`, or absolute and below it.
// Throws Error(not_found), Error(invalid_argument) where it is not below the root.
std::string folder_below(const std::string& root, const std::string& path);

}  // namespace lorry
