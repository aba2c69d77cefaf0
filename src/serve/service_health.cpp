// The routes of Service that tell whether it works, and those of what it never does.
#include "base/error.h"
#include "serve/errors.h"
#include "serve/service.h"

namespace lorry {

namespace {

// Tells whether the one token of /startup came.
class ProbeSink final : public RequestSink {
 public:
  explicit ProbeSink(std::function<void(bool)> done) : done_(std::move(done)) {}
  void on_token(const TokenEvent&) override {}
  void on_finish(const FinishEvent& event) override {
    done_(event.reason != FinishReason::failed && event.reason != FinishReason::cancelled);
  }

 private:
  std::function<void(bool)> done_;
};

}  // namespace

bool Service::is_healthy() const {
  return !draining_.load() && backend_.stuck_seconds() < options_.unhealthy_after_seconds;
}

void Service::health(const CallPtr& call) {
  if (is_healthy()) return reply(*call, HttpResponse{});
  refuse(*call, {Problem::unhealthy, "unhealthy", {}});
}

// Computes one token; once that has worked it is known to.
void Service::startup(const CallPtr& call) {
  const ApiError no{Problem::unhealthy, "unhealthy", {}};
  if (draining_.load()) return refuse(*call, no);
  if (has_started_.load()) return reply(*call, HttpResponse{});
  if (probing_.exchange(true)) return refuse(*call, no);
  Request request;
  request.prompt = {0};
  request.max_new_tokens = 1;
  request.ignore_eos = true;
  request.sink = std::make_shared<ProbeSink>([this, call, no](bool works) {
    has_started_.store(works);
    probing_.store(false);
    call->responder->post([this, call, no, works] {
      if (works) return reply(*call, HttpResponse{});
      refuse(*call, no);
    });
  });
  try {
    backend_.submit(std::move(request));
  } catch (const Error&) {
    probing_.store(false);
    refuse(*call, no);
  }
}

void Service::no_embeddings(const CallPtr& call) {
  refuse(*call, {Problem::no_such_task,
                 "this is a causal language model: it generates text and makes no embeddings",
                 {}});
}

void Service::no_classes(const CallPtr& call) {
  refuse(*call, {Problem::no_such_task,
                 "this is a causal language model: it generates text and does not classify",
                 {}});
}

}  // namespace lorry
