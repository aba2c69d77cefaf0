// Requests kept running on an engine, and what they saw: a closed loop of a fixed number of
// clients, each of which asks again as soon as it has its answer.
#pragma once
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "engine/engine.h"

namespace lorry::bench {

struct Served {
  std::string adapter;
  std::vector<int32_t> prompt, tokens;
  double ttft = 0;   // seconds from submit to the first token
  double total = 0;  // and to the end
  std::optional<Error> error;
};

struct LoadResult {
  std::vector<Served> requests;   // in order of their ends
  std::vector<double> intervals;  // seconds between two tokens of one request, all requests
  double seconds = 0;
  int64_t tokens = 0;
  double tokens_per_s() const { return static_cast<double>(tokens) / seconds; }
};

struct Load {
  int32_t concurrency = 32;
  int32_t tokens = 32;  // of each answer
  // Of every so manieth request prompt and tokens are kept; the others' memory would be taken for
  // the engine's.
  size_t keep_every = 64;
  // The next request's adapter and prompt; nothing: no more. Called by one thread.
  std::function<std::optional<Request>()> next = {};
};

// Returns when every request has ended.
LoadResult run_load(Engine& engine, const Load& load);

double quantile(std::vector<double> values, double q);  // 0 for none

// Numbers 0 ... n - 1, k with a probability proportional to 1 / (k + 1)^s; the same for a seed.
class Zipf {
 public:
  Zipf(int64_t n, double s, uint64_t seed);
  int64_t next();

 private:
  std::vector<double> cumulated_;
  uint64_t state_;
};

}  // namespace lorry::bench
