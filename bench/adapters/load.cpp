#include "bench/adapters/load.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>

#include "base/error.h"

namespace lorry::bench {

namespace {

using Clock = std::chrono::steady_clock;

double since(Clock::time_point from) {
  return std::chrono::duration<double>(Clock::now() - from).count();
}

struct Running {
  Served served;
  Clock::time_point begin;
  std::vector<Clock::time_point> times;  // of tokens
};

// Hands ended requests from the engine's thread to the one that drives the load.
struct Mailbox {
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<std::shared_ptr<Running>> ended;
};

class Sink final : public RequestSink {
 public:
  Sink(std::shared_ptr<Running> running, Mailbox& mailbox)
      : running_(std::move(running)), mailbox_(mailbox) {}

  void on_token(const TokenEvent& event) override {
    running_->times.push_back(Clock::now());
    running_->served.tokens.push_back(event.token.id);
  }
  void on_finish(const FinishEvent& event) override {
    running_->served.total = since(running_->begin);
    running_->served.error = event.error;
    const std::lock_guard lock(mailbox_.mutex);
    mailbox_.ended.push_back(std::move(running_));
    mailbox_.changed.notify_one();
  }

 private:
  std::shared_ptr<Running> running_;
  Mailbox& mailbox_;
};

void start(Engine& engine, Request request, int32_t tokens, Mailbox& mailbox) {
  auto running = std::make_shared<Running>();
  running->served.adapter = request.adapter.label();
  running->served.prompt = request.prompt;
  running->times.reserve(static_cast<size_t>(tokens));
  running->begin = Clock::now();
  request.max_new_tokens = tokens;
  request.ignore_eos = true;
  request.sink = std::make_shared<Sink>(std::move(running), mailbox);
  engine.submit(std::move(request));
}

void take_in(LoadResult& result, Running& running, size_t keep_every) {
  const auto& times = running.times;
  if (!times.empty()) {
    running.served.ttft = std::chrono::duration<double>(times.front() - running.begin).count();
  }
  for (size_t i = 1; i < times.size(); ++i) {
    result.intervals.push_back(std::chrono::duration<double>(times[i] - times[i - 1]).count());
  }
  result.tokens += static_cast<int64_t>(times.size());
  if (result.requests.size() % keep_every != 0) {
    running.served.prompt = {};
    running.served.tokens = {};
  }
  result.requests.push_back(std::move(running.served));
}

}  // namespace

LoadResult run_load(Engine& engine, const Load& load) {
  LoadResult result;
  Mailbox mailbox;
  const auto begin = Clock::now();
  int32_t in_flight = 0;
  bool more = true;
  while (true) {
    while (more && in_flight < load.concurrency) {
      std::optional<Request> request = load.next();
      more = request.has_value();
      if (!more) break;
      start(engine, *std::move(request), load.tokens, mailbox);
      ++in_flight;
    }
    if (in_flight == 0) break;
    std::unique_lock lock(mailbox.mutex);
    mailbox.changed.wait(lock, [&] { return !mailbox.ended.empty(); });
    const std::shared_ptr<Running> running = std::move(mailbox.ended.front());
    mailbox.ended.pop_front();
    lock.unlock();
    --in_flight;
    take_in(result, *running, load.keep_every);
  }
  result.seconds = since(begin);
  return result;
}

double quantile(std::vector<double> values, double q) {
  if (values.empty()) return 0;
  const auto at = static_cast<size_t>(q * static_cast<double>(values.size() - 1) + 0.5);
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(at), values.end());
  return values[at];
}

Zipf::Zipf(int64_t n, double s, uint64_t seed) : state_(seed) {
  double sum = 0;
  for (int64_t k = 0; k < n; ++k) {
    cumulated_.push_back(sum += std::pow(static_cast<double>(k + 1), -s));
  }
}

int64_t Zipf::next() {
  state_ = state_ * 6364136223846793005U + 1442695040888963407U;
  const double x = static_cast<double>(state_ >> 11) * 0x1p-53 * cumulated_.back();
  const auto at = std::upper_bound(cumulated_.begin(), cumulated_.end(), x);
  return std::min<int64_t>(at - cumulated_.begin(), static_cast<int64_t>(cumulated_.size()) - 1);
}

}  // namespace lorry::bench
