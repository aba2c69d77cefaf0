#include "base/topology.h"

#include <algorithm>
#include <charconv>
#include <fstream>
#include <iterator>
#include <limits>
#include <map>
#include <sstream>

#include <fmt/format.h>
#include <sched.h>

namespace lorry {

namespace {

constexpr int kMostNumbers = 1 << 16;  // more CPUs than Linux can have

std::optional<std::string> first_line(const std::string& path) {
  std::ifstream in(path);
  std::string line;
  if (!std::getline(in, line)) return std::nullopt;
  return line;
}

std::optional<std::vector<int>> read_list(const std::string& path) {
  const auto line = first_line(path);
  return line ? parse_number_list(*line) : std::nullopt;
}

std::vector<int> common(const std::vector<int>& a, const std::vector<int>& b) {
  std::vector<int> both;
  std::set_intersection(a.begin(), a.end(), b.begin(), b.end(), std::back_inserter(both));
  return both;
}

// Of `candidates`, the one that is least far away by the distances of a node, which stand in the
// order of `online`; the first where they cannot be read.
int nearest(const std::string& distances, const std::vector<int>& online,
            const std::vector<int>& candidates) {
  std::istringstream in(distances);
  int best = candidates.front();
  int least = std::numeric_limits<int>::max();
  int distance = 0;
  for (size_t i = 0; i < online.size() && in >> distance; ++i) {
    const bool is_one = std::binary_search(candidates.begin(), candidates.end(), online[i]);
    if (!is_one || distance >= least) continue;
    best = online[i];
    least = distance;
  }
  return best;
}

}  // namespace

std::optional<std::vector<int>> parse_number_list(const std::string& text) {
  std::vector<int> numbers;
  const char* at = text.data();
  const char* end = at + text.find_last_not_of(" \t\n") + 1;
  const auto number = [&](int& n) {
    const auto [rest, error] = std::from_chars(at, end, n);
    at = rest;
    return error == std::errc{} && n >= 0 && n < kMostNumbers;
  };
  while (at != end) {
    int first = 0, last = 0;
    if (!number(first)) return std::nullopt;
    last = first;
    if (at != end && *at == '-' && (++at, !number(last))) return std::nullopt;
    if (last < first || (!numbers.empty() && first <= numbers.back())) return std::nullopt;
    for (int n = first; n <= last; ++n) numbers.push_back(n);
    if (at == end) break;
    if (*at++ != ',' || at == end) return std::nullopt;
  }
  return numbers;
}

std::string format_number_list(std::span<const int> numbers) {
  std::string text;
  for (size_t i = 0, next = 0; i < numbers.size(); i = next) {
    for (next = i + 1; next < numbers.size() && numbers[next] == numbers[next - 1] + 1;) ++next;
    text += text.empty() ? "" : ",";
    text += std::to_string(numbers[i]);
    if (next - i > 1) text += "-" + std::to_string(numbers[next - 1]);
  }
  return text;
}

std::vector<int> usable_cpus() {
  // The system refuses a set that is too small for its CPUs.
  for (size_t sets = 1; sets * CPU_SETSIZE <= kMostNumbers; sets *= 2) {
    std::vector<cpu_set_t> set(sets);
    if (sched_getaffinity(0, sets * sizeof(cpu_set_t), set.data()) != 0) continue;
    std::vector<int> cpus;
    for (size_t i = 0; i < sets * CPU_SETSIZE; ++i) {
      if (CPU_ISSET_S(i, sets * sizeof(cpu_set_t), set.data())) {
        cpus.push_back(static_cast<int>(i));
      }
    }
    return cpus;
  }
  return {};
}

std::vector<int> usable_memory_nodes() {
  constexpr std::string_view kKey = "Mems_allowed_list:";
  std::ifstream in("/proc/self/status");
  for (std::string line; std::getline(in, line);) {
    if (!line.starts_with(kKey)) continue;
    const size_t at = line.find_first_not_of(" \t", kKey.size());
    if (at == std::string::npos) break;
    return parse_number_list(line.substr(at)).value_or(std::vector<int>{});
  }
  return {};
}

Topology read_topology(const std::string& folder, const std::vector<int>& cpus,
                       const std::vector<int>& memory_nodes) {
  const auto online = read_list(folder + "/online");
  const auto with_memory = read_list(folder + "/has_memory");
  if (!online || !with_memory) return {};
  const std::vector<int> sources = common(common(*online, *with_memory), memory_nodes);
  if (sources.empty()) return {};
  std::map<int, std::vector<int>> by_memory;
  for (const int id : *online) {
    const std::string node = fmt::format("{}/node{}", folder, id);
    const auto all = read_list(node + "/cpulist");
    if (!all) return {};
    const std::vector<int> own = common(*all, cpus);
    if (own.empty()) continue;
    const bool has_memory = std::binary_search(sources.begin(), sources.end(), id);
    const std::string distances = first_line(node + "/distance").value_or("");
    std::vector<int>& to = by_memory[has_memory ? id : nearest(distances, *online, sources)];
    to.insert(to.end(), own.begin(), own.end());
  }
  Topology topology;
  for (auto& [id, its] : by_memory) {
    std::sort(its.begin(), its.end());
    topology.push_back({id, std::move(its)});
  }
  return topology;
}

Topology read_topology() {
  return read_topology("/sys/devices/system/node", usable_cpus(), usable_memory_nodes());
}

std::string to_string(const Topology& topology) {
  std::string text;
  for (const NumaNode& node : topology) {
    text += fmt::format("{}{} (CPUs {})", text.empty() ? "" : ", ", node.id,
                        format_number_list(node.cpus));
  }
  return text;
}

}  // namespace lorry
