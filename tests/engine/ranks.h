// An engine whose model is spread over ranks, each a thread of this process.
#pragma once
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "engine/follower.h"
#include "engine/harness.h"
#include "parallel/shared_memory.h"

namespace lorry::test {

class RankedEngine {
 public:
  // Each rank with one thread.
  RankedEngine(EngineOptions options, int ranks) {
    options.threads = 1;
    const auto memory = SharedMemory::create(ranks);
    for (int r = 1; r < ranks; ++r) {
      EngineOptions own = options;
      own.comm = make_shared_memory_comm(memory, r);
      followers_.emplace_back([own, r] {
        Log log({LogLevel::error});
        try {
          follow(own, log);
        } catch (const std::exception& e) {
          // Rank 0 waits for it for ever: the test cannot go on.
          fprintf(stderr, "rank %d: %s\n", r, e.what());
          std::abort();
        }
      });
    }
    comm_ = options.comm = make_shared_memory_comm(memory, 0);
    engine_ = std::make_unique<TestEngine>(options);
  }
  ~RankedEngine() {
    engine_.reset();
    for (std::thread& t : followers_) t.join();
  }

  TestEngine& operator*() { return *engine_; }
  TestEngine* operator->() { return engine_.get(); }
  const Comm& comm() const { return *comm_; }

 private:
  std::vector<std::thread> followers_;
  std::shared_ptr<Comm> comm_;
  std::unique_ptr<TestEngine> engine_;
};

}  // namespace lorry::test
