#include "base/system.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <set>
#include <string>

#include <fmt/format.h>
#include <malloc.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/topology.h"

namespace lorry {

namespace {

// The value of a "Key:   value" line of a /proc file; empty when it is not there.
std::string proc_value(const char* path, const std::string& key) {
  std::ifstream in(path);
  for (std::string line; std::getline(in, line);) {
    if (!line.starts_with(key)) continue;
    const size_t colon = line.find(':');
    if (colon == std::string::npos) continue;
    const size_t start = line.find_first_not_of(" \t", colon + 1);
    return start == std::string::npos ? "" : line.substr(start);
  }
  return "";
}

size_t read_number(const std::string& path, size_t fallback) {
  std::ifstream in(path);
  size_t n = 0;
  return in >> n ? n : fallback;
}

}  // namespace

int physical_cores() {
  std::set<std::string> cores;
  for (const int i : usable_cpus()) {
    std::ifstream in(fmt::format("/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list", i));
    std::string siblings;
    if (!std::getline(in, siblings)) siblings = std::to_string(i);
    cores.insert(siblings);
  }
  return std::max(1, static_cast<int>(cores.size()));
}

size_t available_memory() {
  constexpr size_t kNone = std::numeric_limits<size_t>::max();
  const std::string value = proc_value("/proc/meminfo", "MemAvailable");
  size_t available = value.empty() ? 0 : std::stoull(value) * 1024;
  const size_t limit = read_number("/sys/fs/cgroup/memory.max", kNone);
  const size_t used = read_number("/sys/fs/cgroup/memory.current", 0);
  if (limit != kNone) available = std::min(available, limit > used ? limit - used : 0);
  return available;
}

size_t peak_memory() {
  rusage usage{};
  return getrusage(RUSAGE_SELF, &usage) == 0 ? static_cast<size_t>(usage.ru_maxrss) * 1024 : 0;
}

void keep_heap_small() {
  constexpr int kLarge = 256 << 10;
  constexpr int kHeaps = 4;
  mallopt(M_MMAP_THRESHOLD, kLarge);  // also stops glibc from raising it to 32 MB by itself
  mallopt(M_TRIM_THRESHOLD, 4 * kLarge);
  mallopt(M_ARENA_MAX, kHeaps);
}

void trim_heap() { malloc_trim(0); }

void raise_file_limit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == limit.rlim_max) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);  // with the old limit it works, too
}

std::string cpu_name() {
  const std::string name = proc_value("/proc/cpuinfo", "model name");
  return name.empty() ? "unknown" : name;
}

std::string format_bytes(size_t bytes) {
  const auto n = static_cast<double>(bytes);
  if (n >= 1e9) return fmt::format("{:.1f} GB", n / 1e9);
  if (n >= 1e6) return fmt::format("{:.1f} MB", n / 1e6);
  if (n >= 1e3) return fmt::format("{:.1f} kB", n / 1e3);
  return fmt::format("{} B", bytes);
}

}  // namespace lorry
