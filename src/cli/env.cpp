// `lorry env`: the program and the machine, for bug reports.
#include <fstream>
#include <memory>
#include <set>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include <CLI/CLI.hpp>
#include <boost/json/serialize.hpp>
#include <boost/version.hpp>
#include <fmt/format.h>
#include <openssl/crypto.h>
#include <spdlog/version.h>

#include "base/json.h"
#include "base/system.h"
#include "cli/commands.h"
#include "ops/cpu/cpu_ops.h"
#include "ops/cuda/cuda_ops.h"

namespace lorry {

namespace {

// Those of the processor's features that the kernels, or the ones to come, care about.
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

std::string usable() {
  std::string text;
  for (const Isa isa : usable_isas())
    text += (text.empty() ? "" : " ") + std::string(to_string(isa));
  return text;
}

std::string libraries() {
  return fmt::format("Boost {}.{}.{}, fmt {}.{}.{}, spdlog {}.{}.{}, CLI11 {}, {}",
                     BOOST_VERSION / 100000, BOOST_VERSION / 100 % 1000, BOOST_VERSION % 100,
                     FMT_VERSION / 10000, FMT_VERSION / 100 % 100, FMT_VERSION % 100,
                     SPDLOG_VER_MAJOR, SPDLOG_VER_MINOR, SPDLOG_VER_PATCH, CLI11_VERSION,
                     OpenSSL_version(OPENSSL_VERSION));
}

int run(bool as_json) {
  const std::vector<std::pair<std::string, std::string>> facts = {
      {"version", LORRY_VERSION},     {"build", LORRY_BUILD_TYPE}, {"compiler", LORRY_COMPILER},
      {"libraries", libraries()},     {"cpu", cpu_name()},         {"cpu_features", cpu_features()},
      {"isa", to_string(best_isa())}, {"isa_usable", usable()},    {"cuda", cuda_status().text},
  };
  const int cores = physical_cores();
  const size_t memory = available_memory();
  if (as_json) {
    json::object o;
    for (const auto& [key, value] : facts) o[key] = value;
    o["cuda_usable"] = cuda_status().usable;
    o["cores"] = cores;
    o["memory_available"] = memory;
    fmt::print("{}\n", json::serialize(o));
    return 0;
  }
  for (const auto& [key, value] : facts) fmt::print("{:18}{}\n", key, value);
  fmt::print("{:18}{}\n{:18}{}\n", "cores", cores, "memory_available", format_bytes(memory));
  return 0;
}

}  // namespace

Command add_env(CLI::App& lorry) {
  const auto as_json = std::make_shared<bool>(false);
  CLI::App& app =
      *lorry.add_subcommand("env", "Show the program, the machine and what is used of it");
  app.add_flag("--json", *as_json, "As one JSON object");
  app.footer("Example\n  lorry env --json");
  return {&app, [as_json] { return run(*as_json); }};
}

}  // namespace lorry
