// Requests on all routes: door, routes, JSON, the tables of fields, messages, tools, grammars and
// the presenters, with a real tokenizer and chat template; the engine is an echo. Input: a line
// "METHOD PATH", then the body.
#include <memory>

#include "base/json.h"
#include "echo_backend.h"
#include "fuzz.h"
#include "serve/door.h"
#include "serve/service.h"
#include "waiting_responder.h"

namespace {

using namespace lorry;  // NOLINT

struct World {
  World()
      : log({LogLevel::off, false}),
        door(options),
        backend(LORRY_SOURCE_DIR "/demo/mixtral"),
        service(options, door, backend, log) {}

  static ServerOptions make_options() {
    ServerOptions options;
    options.validation_workers = 1;
    options.adapters.sources = {AdapterSource::local, AdapterSource::hub, AdapterSource::s3};
    options.adapter_root = LORRY_SOURCE_DIR "/demo/mixtral/adapters";
    return options;
  }

  const ServerOptions options = make_options();
  Log log;
  Door door;
  fuzz::EchoBackend backend;
  Service service;
};

// Each event of a stream is JSON, but for the last one of OpenAI's older routes; those of responses
// have names.
void check_stream(std::string_view stream) {
  while (!stream.empty()) {
    if (stream.starts_with("event: ")) stream.remove_prefix(stream.find('\n') + 1);
    const size_t end = stream.find("\n\n");
    LORRY_CHECK(end != stream.npos && stream.starts_with("data: "), "no event: {}", stream);
    const std::string_view data = stream.substr(6, end - 6);
    if (data != "[DONE]") parse_json(data, "an event");
    stream.remove_prefix(end + 2);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static World world;
  const std::string_view input = fuzz::text_of(data, size);
  const std::string_view line = input.substr(0, input.find('\n'));
  HttpRequest request;
  request.method = line.substr(0, line.find(' '));
  if (line.size() > request.method.size()) request.path = line.substr(request.method.size() + 1);
  if (line.size() < input.size()) request.body = input.substr(line.size() + 1);
  request.headers = {{"host", "localhost"}, {"content-type", "application/json"}};
  request.received = std::chrono::steady_clock::now();

  const auto responder = std::make_shared<fuzz::WaitingResponder>();
  world.service.handle(std::move(request), responder);
  const HttpResponse& answer = responder->wait();
  LORRY_CHECK(answer.status >= 200 && answer.status < 500, "status {}: {}", answer.status,
              answer.body);
  if (responder->streaming()) {
    check_stream(answer.body);
  } else if (answer.content_type == "application/json") {
    parse_json(answer.body, "the answer");
  }
  return 0;
}
