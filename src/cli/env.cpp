// `lorry env`: the program and the machine, for bug reports.
#include <algorithm>
#include <memory>
#include <string>
#include <utility>

#include <CLI/CLI.hpp>
#include <boost/json/serialize.hpp>
#include <boost/version.hpp>
#include <fmt/format.h>
#include <openssl/crypto.h>
#include <spdlog/version.h>

#include "base/json.h"
#include "base/system.h"
#include "cli/commands.h"
#include "cli/environment.h"
#include "cli/machine.h"
#include "cli/serve_flags.h"
#include "cli/sources.h"
#include "ops/cpu/cpu_ops.h"
#include "ops/cuda/cuda_ops.h"
#include "parallel/mpi.h"

namespace lorry {

namespace {

// Lines, each a member of the JSON object too.
class Facts {
 public:
  // `text`: for people.
  void add(const char* name, json::value value, const std::string& text) {
    lines_ += fmt::format("{:18}{}\n", name, text);
    object_[name] = std::move(value);
  }
  void add(const char* name, const std::string& text) { add(name, json::string(text), text); }
  void add(const char* name, int number) { add(name, number, std::to_string(number)); }
  const std::string& lines() const { return lines_; }
  const json::object& object() const { return object_; }

 private:
  std::string lines_;
  json::object object_;
};

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

void add_bytes(Facts& facts, const char* name, int64_t bytes, const char* none) {
  facts.add(name, bytes, bytes == 0 ? none : format_bytes(static_cast<size_t>(bytes)));
}

// A folder of downloads and what it holds.
void add_cache(Facts& facts, const char* name, const std::string& folder) {
  const int64_t bytes = folder.empty() ? 0 : folder_bytes(folder);
  facts.add(name, json::object{{"folder", folder}, {"bytes", bytes}},
            folder.empty()
                ? "none: HOME is not set"
                : fmt::format("{} ({})", folder, format_bytes(static_cast<size_t>(bytes))));
}

void add_program(Facts& facts) {
  facts.add("version", LORRY_VERSION);
  facts.add("build", LORRY_BUILD_TYPE);
  facts.add("compiler", LORRY_COMPILER);
  facts.add("libraries", libraries());
}

void add_processor(Facts& facts, const Machine& m) {
  facts.add("system", m.system);
  facts.add("cpu", cpu_name());
  facts.add("cpu_features", cpu_features());
  facts.add("isa", to_string(best_isa()));
  facts.add("isa_usable", usable());
  facts.add("cores", physical_cores());
  facts.add("cpus", m.cpus);
  facts.add("threads", physical_cores(), fmt::format("{} (--threads)", physical_cores()));
  facts.add("numa_nodes", std::max(1, static_cast<int>(m.nodes.size())));
  json::array nodes;
  for (const NumaNode& n : m.nodes) {
    nodes.push_back(json::object{{"node", n.id}, {"cpus", format_number_list(n.cpus)}});
  }
  facts.add("numa", std::move(nodes), m.nodes.empty() ? "unknown" : to_string(m.nodes));
  const CudaStatus cuda = cuda_status();
  facts.add("gpu", json::object{{"found", m.nvidia_gpus}, {"usable", cuda.usable}},
            m.nvidia_gpus == 0 ? "none found" : fmt::format("{} of NVIDIA", m.nvidia_gpus));
  facts.add("cuda", json::string(cuda.text), cuda.text);
  const std::string mpi = mpi_library();
  facts.add("mpi", json::string(mpi), mpi.empty() ? "not found (only mpirun needs it)" : mpi);
}

void add_memory(Facts& facts, const Machine& m) {
  add_bytes(facts, "memory_total", m.memory_total, "unknown");
  add_bytes(facts, "memory_limit", m.memory_limit, "none");
  add_bytes(facts, "memory_available", static_cast<int64_t>(available_memory()), "none");
  const std::string& thp = m.transparent_huge_pages;
  facts.add(
      "huge_pages",
      json::object{
          {"transparent", thp}, {"reserved", m.huge_pages}, {"reserved_free", m.huge_pages_free}},
      fmt::format("transparent: {}; {} reserved, {} of them free", thp.empty() ? "unknown" : thp,
                  m.huge_pages, m.huge_pages_free));
}

void add_places(Facts& facts) {
  add_cache(facts, "hub_cache", hub_options("").cache_folder);
  add_cache(facts, "s3_cache", s3_options().cache_folder);
  const uint16_t port = ServeFlags{}.port;
  const bool is_free = is_port_free(port);
  facts.add("port", json::object{{"number", port}, {"free", is_free}},
            fmt::format("{} {}", port, is_free ? "is free" : "is in use (--port)"));
}

int run(bool as_json) {
  const Machine machine = read_machine();
  Facts facts;
  add_program(facts);
  add_processor(facts, machine);
  add_memory(facts, machine);
  add_places(facts);
  fmt::print("{}", as_json ? json::serialize(facts.object()) + "\n" : facts.lines());
  return 0;
}

}  // namespace

Command add_env(CLI::App& lorry) {
  const auto as_json = std::make_shared<bool>(false);
  CLI::App& app =
      *lorry.add_subcommand("env", "Show the program, the machine and what is used of it");
  app.add_flag("--json", *as_json, "As one JSON object")->group("Output");
  app.footer("Example\n  lorry env --json");
  return {&app, [as_json] { return run(*as_json); }};
}

}  // namespace lorry
