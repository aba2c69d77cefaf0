#include "cli/machine.h"

#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>
#include <system_error>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/utsname.h>
#include <unistd.h>

namespace lorry {

namespace {

namespace fs = std::filesystem;

// The number of a "Key:  value" line of /proc/meminfo.
int64_t meminfo(const std::string& key) {
  std::ifstream in("/proc/meminfo");
  for (std::string line; std::getline(in, line);) {
    if (line.starts_with(key + ":")) return std::stoll(line.substr(key.size() + 1));
  }
  return 0;
}

int count_entries(const std::string& folder, const std::string& prefix) {
  int n = 0;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename();
    const std::string rest = name.substr(std::min(prefix.size(), name.size()));
    if (name.starts_with(prefix) && !rest.empty() &&
        rest.find_first_not_of("0123456789") == std::string::npos) {
      ++n;
    }
  }
  return n;
}

int64_t group_limit() {
  std::ifstream in("/sys/fs/cgroup/memory.max");
  int64_t limit = 0;
  return in >> limit ? limit : 0;  // "max": none
}

// The word in brackets of "always [madvise] never".
std::string chosen_word(const std::string& path) {
  std::ifstream in(path);
  std::string line;
  std::getline(in, line);
  const size_t open = line.find('['), close = line.find(']');
  if (open == std::string::npos || close == std::string::npos) return "";
  return line.substr(open + 1, close - open - 1);
}

}  // namespace

Machine read_machine() {
  Machine m;
  m.cpus = static_cast<int>(usable_cpus().size());
  m.nodes = read_topology();
  m.memory_total = meminfo("MemTotal") * 1024;
  m.memory_limit = group_limit();
  m.transparent_huge_pages = chosen_word("/sys/kernel/mm/transparent_hugepage/enabled");
  m.huge_pages = meminfo("HugePages_Total");
  m.huge_pages_free = meminfo("HugePages_Free");
  m.nvidia_gpus = count_entries("/dev", "nvidia");
  utsname name{};
  if (uname(&name) == 0) {
    m.system = std::string(name.sysname) + " " + name.release + " " + name.machine;
  }
  return m;
}

std::string cpu_features() {
  const std::set<std::string> interesting = {
      "sse4_2",   "avx",      "avx2",        "fma",         "f16c",        "avx512f",  "avx512bw",
      "avx512vl", "avx512dq", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16",
      "amx_int8", "avx_vnni", "asimd",       "bf16",        "i8mm",        "sve"};
  std::ifstream file("/proc/cpuinfo");
  std::string features;
  for (std::string line; features.empty() && std::getline(file, line);) {
    if (!line.starts_with("flags") && !line.starts_with("Features")) continue;
    std::istringstream words(line.substr(line.find(':') + 1));
    for (std::string word; words >> word;) {
      if (interesting.contains(word)) features += (features.empty() ? "" : " ") + word;
    }
  }
  return features;
}

int64_t folder_bytes(const std::string& folder) {
  int64_t bytes = 0;
  std::error_code error;
  fs::recursive_directory_iterator it(folder, fs::directory_options::skip_permission_denied, error);
  for (const fs::recursive_directory_iterator end; !error && it != end; it.increment(error)) {
    std::error_code of_file;
    const bool is_file = fs::is_regular_file(it->symlink_status(of_file));
    const auto size = is_file ? it->file_size(of_file) : 0;
    if (!of_file) bytes += static_cast<int64_t>(size);
  }
  return bytes;
}

bool is_port_free(uint16_t port) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const int on = 1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(port);
  const bool is_free = bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
  close(fd);
  return is_free;
}

}  // namespace lorry
