// EngineCore's dealings with adapters: whose turn it is, and what is loaded without a request.
#include <algorithm>
#include <thread>
#include <utility>

#include "base/error.h"
#include "engine/core.h"

namespace lorry {

namespace {

// Who comes back computes up to a block of tokens again: a turn of fewer steps would be spent on
// it.
constexpr int kTurnSteps = kBlockTokens;

}  // namespace

void EngineCore::park(int32_t content) {
  std::vector<RequestId> parked;
  for (const auto& [id, a] : requests_) {
    if (!a->scheduled || !a->has_adapter || registry_.content(a->handle) != content) continue;
    scheduler_.park(a->seq);
    registry_.unpin(a->handle);
    a->scheduled = false;
    a->preempted = a->has_started;
    parked.push_back(id);
  }
  std::sort(parked.begin(), parked.end());
  unscheduled_.insert(unscheduled_.end(), parked.begin(), parked.end());
  counters_.parked += static_cast<int64_t>(parked.size());
}

void EngineCore::load_adapter(const AdapterLoad& load, Loaded done) {
  try {
    if (loads_.size() >= static_cast<size_t>(options_.max_requests)) {
      fail(Code::over_capacity, "{} adapters are being loaded already", loads_.size());
    }
    if (!load.in_place && registry_.is_registered(load.name)) {
      fail(Code::invalid_argument,
           "The lora adapter '{}' has already been loaded. If you want to load the adapter in "
           "place, set 'load_inplace' to True.",
           load.name);
    }
    loads_.push_back({registry_.acquire_folder(load.name, load.path), true, std::move(done)});
  } catch (const Error& e) {
    done(&e);
  }
}

void EngineCore::preload(const AdapterRef& ref, Loaded done) {
  loads_.push_back({registry_.acquire(ref), false, std::move(done)});
}

void EngineCore::end_loads() {
  std::erase_if(loads_, [&](const Loading& load) {
    const AdapterStatus status = registry_.status(load.handle);
    if (status.error == nullptr && status.adapter == nullptr) return false;
    std::optional<Error> error;
    if (status.error != nullptr) error = *status.error;
    if (!error && load.publish) registry_.publish(load.handle);
    registry_.release(load.handle);
    load.done(error ? &*error : nullptr);
    return true;
  });
}

bool EngineCore::hear_ranks() {
  if (!leader_.is_waiting()) return false;
  leader_.listen();
  if (leader_.is_waiting()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  return true;
}

// Moves requests whose adapter has its turn to the scheduler, and ends those whose adapter failed.
void EngineCore::admit() {
  registry_.set_cycle_time(std::max(cycle_time_, kTurnSteps * usual_step_));
  registry_.poll();
  while (const std::optional<int32_t> content = registry_.rotate()) {
    park(*content);
    registry_.poll();
  }
  end_loads();
  const std::deque<RequestId> waiting = std::exchange(unscheduled_, {});
  for (const RequestId id : waiting) {
    const auto at = requests_.find(id);
    if (at == requests_.end()) continue;
    if (const Error* error = registry_.status(at->second->handle).error) {
      finish(*at->second, FinishReason::failed, Error(*error));
    } else if (!schedule(*at->second)) {
      unscheduled_.push_back(id);
    }
  }
}

}  // namespace lorry
