// TaggedResponder: a Responder whose answers all get the same additional headers.
#pragma once
#include <functional>
#include <memory>
#include <string_view>
#include <utility>

#include "serve/http.h"

namespace lorry {

class TaggedResponder final : public Responder {
 public:
  TaggedResponder(std::shared_ptr<Responder> inner, HttpHeaders headers)
      : inner_(std::move(inner)), headers_(std::move(headers)) {}

  void post(std::function<void()> work) override { inner_->post(std::move(work)); }
  void respond(HttpResponse response) override { inner_->respond(tagged(std::move(response))); }
  void prepare_stream(HttpResponse head) override {
    inner_->prepare_stream(tagged(std::move(head)));
  }
  bool begun() const override { return inner_->begun(); }
  bool write(std::string_view chunk) override { return inner_->write(chunk); }
  void finish_stream() override { inner_->finish_stream(); }
  void at(std::chrono::steady_clock::time_point time, std::function<void()> work) override {
    inner_->at(time, std::move(work));
  }
  bool closed() const override { return inner_->closed(); }
  void on_close(std::function<void()> callback) override { inner_->on_close(std::move(callback)); }

 private:
  HttpResponse tagged(HttpResponse response) const {
    response.headers.insert(response.headers.end(), headers_.begin(), headers_.end());
    return response;
  }

  const std::shared_ptr<Responder> inner_;
  const HttpHeaders headers_;
};

}  // namespace lorry
