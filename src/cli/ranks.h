// Ranks: the processes of one model. With --num-shard N this process starts the others itself, as
// the same command line again, and they share memory (parallel/shared_memory.h); under mpirun they
// are there already (parallel/mpi.h). Rank 0 does what the command is for, the others follow its
// engine.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "engine/engine.h"

namespace CLI {
class App;
}

namespace lorry {

struct RankFlags {
  int32_t num_shard = 1;
  bool expert_parallel = false;
  std::string nccl_library;
  std::string join;  // how a started rank finds its group: "DESCRIPTOR:RANK"; for own use
};

void add_rank_flags(CLI::App& app, RankFlags& flags);

// Where a rank of one host belongs that has several NUMA nodes.
struct RankPlace {
  int first = 0, nodes = 1;  // of the topology
  int ranks = 1;             // that share the node
};
// Several nodes of its own, or one that it may share. Nothing where there is one node.
std::optional<RankPlace> place_rank(int rank, int ranks, int nodes);

// What CUDA_VISIBLE_DEVICES, which is `visible` or not set, is to be for the ranks of this host to
// have a GPU each: the one in the rank's place, or none.
std::string device_of_rank(const std::optional<std::string>& visible, int rank);

class Ranks {
 public:
  // Starts the other ranks, or joins the group that this one was started for. `on_lost`: called
  // before the process ends because another rank has; by a thread of its own. Throws Error.
  Ranks(const RankFlags& flags, std::function<void()> on_lost = {});
  // Ranks that still run are killed.
  ~Ranks();
  Ranks(const Ranks&) = delete;
  Ranks& operator=(const Ranks&) = delete;

  // Whether this process is a rank beside rank 0, before it has joined.
  static bool is_follower(const RankFlags& flags);
  bool leads() const { return comm_ == nullptr || comm_->rank() == 0; }
  // With --num-shard on several NUMA nodes the rank is bound to its own: the calling thread, and
  // with it all those that it starts from now on.
  void set(EngineOptions& options) const;
  // What rank > 0 does instead of the command: follows until rank 0's engine ends. Returns the exit
  // status.
  int follow(const EngineOptions& options) const;
  // After rank 0's engine has ended: waits for the others, which end now too.
  void finish();

 private:
  struct Child {
    int rank = 0;
    int pid = 0;
  };

  void start(int n);
  void bind(EngineOptions& options) const;
  void watch();
  int ended(int pid);

  const bool expert_parallel_;
  const std::string nccl_library_;
  bool started_ = false;  // by lorry itself, not by mpirun
  std::function<void()> on_lost_;
  std::shared_ptr<Comm> comm_;
  std::mutex mutex_;
  std::vector<Child> children_;  // pid 0: it has ended
  std::atomic<bool> finishing_{false};
  std::thread watcher_;
};

}  // namespace lorry
