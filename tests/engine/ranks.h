// A model spread over ranks, each a thread of this process: by itself, or with an engine.
#pragma once
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "engine/follower.h"
#include "engine/harness.h"
#include "parallel/shared_memory.h"

namespace lorry::test {

// Calls f with the comm of each of n ranks, on a thread of its own.
template <class F>
void on_ranks(int n, F&& f) {
  const auto memory = SharedMemory::create(n);
  std::vector<std::thread> threads;
  for (int r = 0; r < n; ++r) {
    threads.emplace_back([&, r] { f(std::shared_ptr<Comm>(make_shared_memory_comm(memory, r))); });
  }
  for (std::thread& t : threads) t.join();
}

class RankedEngine {
 public:
  // Each rank with one thread; the others may look for adapters in another folder than rank 0.
  RankedEngine(EngineOptions options, int ranks, const std::string& root_of_others = {}) {
    options.threads = 1;
    const auto memory = SharedMemory::create(ranks);
    for (int r = 1; r < ranks; ++r) {
      EngineOptions own = options;
      own.comm = make_shared_memory_comm(memory, r);
      if (!root_of_others.empty()) own.adapter_root = root_of_others;
      followers_.emplace_back([own] { follow_or_abort(own); });
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
  static void follow_or_abort(const EngineOptions& options) {
    Log log({LogLevel::error});
    try {
      follow(options, log);
    } catch (const std::exception& e) {
      // Rank 0 would wait for it for ever: the test cannot go on.
      fprintf(stderr, "rank %d: %s\n", options.comm->rank(), e.what());
      std::abort();
    }
  }

  std::vector<std::thread> followers_;
  std::shared_ptr<Comm> comm_;
  std::unique_ptr<TestEngine> engine_;
};

}  // namespace lorry::test
