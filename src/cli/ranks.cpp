#include "cli/ranks.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/error.h"
#include "base/files.h"
#include "base/numa.h"
#include "base/system.h"
#include "cli/environment.h"
#include "cli/signals.h"
#include "cli/values.h"
#include "engine/follower.h"
#include "parallel/mpi.h"
#include "parallel/one_host.h"
#include "parallel/shared_memory.h"

namespace lorry {

namespace {

constexpr int kMaxRanks = 256;
constexpr auto kFinish = std::chrono::seconds(5);
constexpr auto kOwnFault = std::chrono::milliseconds(700);

std::vector<std::string> own_arguments() {
  const std::string text = read_file("/proc/self/cmdline");
  std::vector<std::string> arguments;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\0', at), text.size());
    arguments.push_back(text.substr(at, end - at));
    at = end + 1;
  }
  return arguments;
}

std::string how_it_ended(int status) {
  if (WIFSIGNALED(status)) return fmt::format("was killed by signal {}", WTERMSIG(status));
  return fmt::format("ended with status {}", WEXITSTATUS(status));
}

void complain(const std::string& text) { std::fputs(text.c_str(), stderr); }

}  // namespace

void add_rank_flags(CLI::App& app, RankFlags& f) {
  const char* group = "Ranks";
  accept_range(app.add_option("--num-shard,--tensor-parallel-size", f.num_shard,
                              "Processes on this host that share the model, each with a part "
                              "(default: 1). Under mpirun their number is mpirun's")
                   ->group(group),
               1, kMaxRanks);
  app.add_flag("--expert-parallel", f.expert_parallel,
               "Give each of them whole experts, not a part of every one")
      ->group(group);
  app.add_option("--nccl-library", f.nccl_library,
                 "With a GPU each: the file of NCCL (default: libnccl.so.2 of the system)")
      ->group(group);
  app.add_option("--join-ranks", f.join)->group("");
}

std::optional<RankPlace> place_rank(int rank, int ranks, int nodes) {
  if (nodes < 2) return std::nullopt;
  const auto first_of = [&](int r) { return r * nodes / ranks; };
  RankPlace place{first_of(rank), std::max(1, first_of(rank + 1) - first_of(rank)), 0};
  for (int r = 0; r < ranks; ++r) place.ranks += first_of(r) == place.first ? 1 : 0;
  return place;
}

std::string device_of_rank(const std::optional<std::string>& visible, int rank) {
  if (!visible) return std::to_string(rank);
  size_t at = 0;
  for (int r = 0; r < rank; ++r) {
    at = visible->find(',', at);
    if (at == std::string::npos) return {};
    ++at;
  }
  return visible->substr(at, visible->find(',', at) - at);
}

namespace {

// Before CUDA is first asked for anything, and before there are threads.
void take_device(int rank) {
  const std::string device = device_of_rank(environment_as_it_is("CUDA_VISIBLE_DEVICES"), rank);
  setenv("CUDA_VISIBLE_DEVICES", device.c_str(), 1);
}

// Under mpirun a script may have chosen a device for each rank already.
void take_device_under_mpi() {
  const auto rank = environment("OMPI_COMM_WORLD_LOCAL_RANK");
  const auto visible = environment_as_it_is("CUDA_VISIBLE_DEVICES");
  if (!rank || (visible && visible->find(',') == std::string::npos)) return;
  take_device(std::atoi(rank->c_str()));
}

}  // namespace

bool Ranks::is_follower(const RankFlags& f) {
  return !f.join.empty() || environment("OMPI_COMM_WORLD_RANK").value_or("0") != "0";
}

Ranks::Ranks(const RankFlags& f, std::function<void()> on_lost)
    : expert_parallel_(f.expert_parallel),
      nccl_library_(f.nccl_library),
      on_lost_(std::move(on_lost)) {
  // Rank 0 decides when all end: what stops a whole terminal or group is for it alone.
  if (is_follower(f)) ignore_signals();
  if (!f.join.empty()) {
    int descriptor = -1, rank = -1;
    if (std::sscanf(f.join.c_str(), "%d:%d", &descriptor, &rank) != 2) {
      fail(Code::invalid_argument, "--join-ranks {}: is for lorry's own use", f.join);
    }
    auto memory = SharedMemory::attach(descriptor);
    if (rank < 1 || rank >= memory->ranks()) {
      fail(Code::invalid_argument, "--join-ranks {}: there are {} ranks", f.join, memory->ranks());
    }
    take_device(rank);
    comm_ = make_shared_memory_comm(std::move(memory), rank);
    started_ = true;
    return;
  }
  if (const auto size = environment("OMPI_COMM_WORLD_SIZE"); size && *size != "1") {
    take_device_under_mpi();
    comm_ = share_one_host(make_mpi_comm());
    if (f.num_shard != 1 && f.num_shard != comm_->size()) {
      fail(Code::invalid_argument, "--num-shard {}: mpirun has started {} ranks; leave it out",
           f.num_shard, comm_->size());
    }
    return;
  }
  if (f.num_shard > 1) start(f.num_shard);
}

void Ranks::start(int n) {
  const auto memory = SharedMemory::create(n);
  const std::vector<std::string> arguments = own_arguments();
  const pid_t parent = getpid();
  for (int r = 1; r < n; ++r) {
    std::vector<std::string> own = arguments;
    own.push_back(fmt::format("--join-ranks={}:{}", memory->descriptor(), r));
    std::vector<char*> pointers;
    for (std::string& a : own) pointers.push_back(a.data());
    pointers.push_back(nullptr);
    const pid_t pid = fork();
    if (pid < 0) fail(Code::over_capacity, "cannot start rank {}: {}", r, std::strerror(errno));
    if (pid == 0) {
      // The rank dies with this process, also where that is killed.
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      if (getppid() != parent) _exit(1);
      execv("/proc/self/exe", pointers.data());
      _exit(127);
    }
    children_.push_back({r, pid});
  }
  take_device(0);
  comm_ = make_shared_memory_comm(memory, 0);
  started_ = true;
  watcher_ = std::thread([this] { watch(); });
}

// A rank that ends while the others go on takes all with it: they would wait for it for ever.
void Ranks::watch() {
  for (size_t left = children_.size(); left > 0;) {
    int status = 0;
    const pid_t pid = waitpid(-1, &status, 0);
    if (pid < 0 && errno == EINTR) continue;
    if (pid < 0) return;
    --left;
    const int rank = ended(pid);
    if (finishing_ || rank < 0) continue;
    // What went wrong there has most often gone wrong here too, and is about to be said.
    if (WIFEXITED(status)) std::this_thread::sleep_for(kOwnFault);
    if (finishing_) continue;
    complain(fmt::format("lorry: rank {} (process {}) {}: all ranks end\n", rank, pid,
                         how_it_ended(status)));
    if (on_lost_) on_lost_();
    std::_Exit(1);
  }
}

// The rank of a process that is no more; -1: it was none of ours.
int Ranks::ended(int pid) {
  const std::lock_guard lock(mutex_);
  for (Child& c : children_) {
    if (c.pid != pid) continue;
    c.pid = 0;
    return c.rank;
  }
  return -1;
}

Ranks::~Ranks() {
  finishing_ = true;
  {
    const std::lock_guard lock(mutex_);
    for (const Child& c : children_) {
      if (c.pid != 0) kill(c.pid, SIGKILL);
    }
  }
  if (watcher_.joinable()) watcher_.join();
}

void Ranks::finish() {
  finishing_ = true;
  if (comm_) comm_->end();
  const auto deadline = std::chrono::steady_clock::now() + kFinish;
  const auto some_run = [&] {
    const std::lock_guard lock(mutex_);
    return std::any_of(children_.begin(), children_.end(),
                       [](const Child& c) { return c.pid != 0; });
  };
  while (some_run() && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
}

void Ranks::set(EngineOptions& options) const {
  options.comm = comm_;
  options.expert_parallel = expert_parallel_;
  options.nccl_library = nccl_library_;
  if (started_) bind(options);
}

// What the rank allocates afterwards lies on its nodes.
void Ranks::bind(EngineOptions& options) const {
  const auto place =
      place_rank(comm_->rank(), comm_->size(), static_cast<int>(options.topology.size()));
  if (!place) return;
  const auto first = options.topology.begin() + place->first;
  Topology own(first, first + place->nodes);
  std::vector<int> cpus;
  for (const NumaNode& node : own) cpus.insert(cpus.end(), node.cpus.begin(), node.cpus.end());
  std::sort(cpus.begin(), cpus.end());
  if (!bind_thread(pthread_self(), cpus)) return;
  options.topology = std::move(own);
  if (options.threads == 0) options.threads = std::max(1, physical_cores() / place->ranks);
}

int Ranks::follow(const EngineOptions& options) const {
  Log log({.level = LogLevel::error});
  try {
    lorry::follow(options, log);
    comm_->end();
  } catch (const std::exception& e) {
    complain(fmt::format("lorry: rank {}: {}\n", comm_->rank(), e.what()));
    std::_Exit(1);  // others may be waiting for this one: nothing is to be waited for
  }
  return 0;
}

}  // namespace lorry
