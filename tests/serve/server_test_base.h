// A server over a scripted backend, on a port of the system's choice.
#pragma once
#include <memory>
#include <string>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "serve/http_client.h"
#include "serve/scripted_backend.h"
#include "serve/server.h"

namespace lorry {

// The deltas of a chat's stream.
inline std::vector<json::object> deltas_of(const std::string& stream) {
  std::vector<json::object> deltas;
  for (const std::string& event : events_of(stream)) {
    if (event == "[DONE]") break;
    const json::value chunk = parse_json(event, "chunk");
    deltas.push_back(chunk.at("choices").as_array()[0].at("delta").as_object());
  }
  return deltas;
}

class ServerTest : public testing::Test {
 protected:
  static std::string model_folder() {
    return std::string(LORRY_SOURCE_DIR) + "/tests/golden/dbrx-base/model";
  }

  ServerTest() : log({LogLevel::off, false}), backend(model_folder()) { options.http.port = 0; }

  // The server; started by the first call, with the options as they are then.
  Server& server() {
    if (!server_) {
      server_ = std::make_unique<Server>(options, log);
      server_->start();
      server_->serve(backend);
    }
    return *server_;
  }
  uint16_t port() { return server().port(); }
  void stop_server() { server_.reset(); }

  Reply post(const std::string& path, const std::string& body) {
    return Client(port()).post(path, body);
  }
  Reply get(const std::string& path) { return Client(port()).get(path); }
  // Sends raw bytes and returns the answer.
  Reply raw(const std::string& bytes) {
    Client client(port());
    client.send(bytes);
    return client.read_reply();
  }
  std::vector<std::string> stream(const std::string& path, const std::string& body) {
    return events_of(post(path, body).body);
  }

  // Requests run until they are cancelled.
  void run_for_ever() {
    backend.set_round(std::chrono::milliseconds(5));
    backend.set_plan([this](const Request& request) {
      Script script = backend.say("a b", request);
      script.tokens.pop_back();
      script.never_ends = true;
      return script;
    });
  }

  static bool eventually(const std::function<bool()>& condition) {
    for (int i = 0; i < 2000; ++i) {
      if (condition()) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    return false;
  }

  ServerOptions options;
  Log log;
  ScriptedBackend backend;

 private:
  std::unique_ptr<Server> server_;
};

}  // namespace lorry
