#include "engine/follower.h"

#include <cstring>
#include <deque>
#include <utility>

#include "adapters/loader.h"
#include "base/error.h"
#include "engine/held_adapters.h"
#include "engine/loaded_model.h"
#include "engine/orders.h"

namespace lorry {

namespace {

constexpr size_t kMostReports = 16;  // of one answer
constexpr size_t kMostText = 1024;

class Follower {
 public:
  Follower(const EngineOptions& o, LoadedModel& model)
      : model_(model),
        images_(model.memory.adapters),
        loader_(options_of(o), adapter_target(model)) {}

  // False: it was the last round.
  bool serve_round() {
    model_.comm->broadcast(message_);
    WireReader r(message_);
    const auto kind = static_cast<RoundKind>(r.number());
    for (int64_t n = r.number(); n > 0; --n) {
      AdapterOrder order;
      read(r, order);
      carry_out(std::move(order));
    }
    if (kind == RoundKind::stop) return false;
    uint64_t routes = 0;
    if (kind == RoundKind::step) {
      read(r, input_);
      forward();
      routes = model_.lm->routes();
    }
    answer(routes);
    return true;
  }

 private:
  static AdapterLoader::Options options_of(const EngineOptions& o) {
    AdapterLoader::Options l;
    l.root = o.adapter_root;
    l.limits.max_rank = o.max_lora_rank;
    l.limits.max_medusa_heads = o.max_medusa_heads;
    l.loader_threads = 1;  // it reads rows of the base model, one reader at a time
    l.fetch_threads = 1;
    return l;
  }

  void carry_out(AdapterOrder order) {
    std::byte* to = images_.data() + order.to;
    if (!order.is_read) {
      std::memmove(to, images_.data() + order.from, static_cast<size_t>(order.bytes));
      return adapters_.move(order.content, images_.data(), order.to, order.bytes);
    }
    adapters_.expect(order.content, order.to, order.bytes);
    LoadJob job;
    job.kind = LoadJob::Kind::read;
    job.id = order.content;
    job.files = std::move(order.files);
    job.to = to;
    job.bytes = static_cast<size_t>(order.bytes);
    jobs_.push_back(std::move(job));
  }

  void forward() {
    views_.clear();
    for (const int32_t content : input_.contents) views_.push_back(adapters_.view(content));
    model_.lm->forward(input_.input, model_.layers, views_);
  }

  void answer(uint64_t routes) {
    while (!jobs_.empty() && loader_.has_room(LoadJob::Kind::read)) {
      loader_.send(std::move(jobs_.front()));
      jobs_.pop_front();
    }
    WireWriter w;
    w.number(static_cast<int64_t>(routes));
    for (size_t n = 0; n < kMostReports; ++n) {
      std::optional<LoadResult> result = loader_.take();
      if (!result) break;
      AdapterReport report{result->id, {}, {}, {}};
      if (result->error) {
        report.code = result->error->code();
        report.message = std::string(result->error->what()).substr(0, kMostText);
        adapters_.drop(result->id);
      } else {
        report.digest = to_hex(result->adapter->digest());
        adapters_.put(result->id, std::move(result->adapter));
      }
      write(w, report);
    }
    model_.comm->collect(w.take());
  }

  LoadedModel& model_;
  Buffer images_;  // as rank 0's device memory
  HeldAdapters adapters_;
  std::deque<LoadJob> jobs_;
  Bytes message_;
  OwnedInput input_;
  std::vector<AdapterView> views_;
  AdapterLoader loader_;  // last: its threads use the others
};

}  // namespace

void follow(const EngineOptions& options, Log& log) {
  LORRY_CHECK(options.comm && options.comm->rank() > 0, "rank 0 leads");
  const auto model = load_model(options, log);
  Follower follower(options, *model);
  const ThreadBinding bound = model->pool->bind_caller();
  while (follower.serve_round()) {
  }
}

}  // namespace lorry
