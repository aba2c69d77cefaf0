// A hub, a cache folder and a source between them.
#pragma once
#include <string>

#include "fetch/fake_hub.h"
#include "fetch/hub.h"
#include "fetch/support.h"

namespace lorry {

class HubTest : public FolderTest {
 protected:
  HubTest() {
    options_ = {.endpoint = hub_.server.origin(),
                .cache_folder = path("cache"),
                .network = fast_network(),
                .limits = small_limits()};
  }

  Fetched resolve(const std::string& name = "org/name", const std::string& token = "",
                  const FetchControl& control = {}) const {
    return HubSource(options_).resolve(name, token, control);
  }
  Error error_of_resolve(const std::string& name = "org/name",
                         const std::string& token = "") const {
    return error_of([&] { resolve(name, token); });
  }
  std::string repo_folder() const { return path("cache/models--org--name"); }
  std::string blob(const std::string& etag) const { return repo_folder() + "/blobs/" + etag; }
  const FakeHub::File& weights() const {
    return hub_.commits.begin()->second.at("adapter_model.safetensors");
  }
  std::string weights_blob() const { return blob(sha256_of(weights().content)); }
  // Spoils the answers to GET requests for the weights; `fault` knows which of them it is, from 0.
  void spoil_weights(std::function<void(int, ServerReply&)> fault) {
    const auto guard = hub_.lock();
    hub_.fault = [fault, n = 0](const ServerRequest& request, ServerReply& reply) mutable {
      if (request.method == "GET" && request.path.ends_with("adapter_model.safetensors")) {
        fault(n++, reply);
      }
    };
  }
  // Nothing is shown that is not whole.
  void expect_nothing_shown() const {
    EXPECT_THAT(files_with_end(repo_folder() + "/snapshots", ".json"), testing::IsEmpty());
    EXPECT_THAT(files_with_end(repo_folder() + "/snapshots", ".safetensors"), testing::IsEmpty());
  }
  void expect_fetched(const Fetched& fetched) const {
    EXPECT_EQ(read_file(join_path(fetched.folder, "adapter_model.safetensors")), weights().content);
    EXPECT_EQ(read_file(join_path(fetched.folder, "adapter_config.json")),
              R"({"peft_type": "LORA"})");
    EXPECT_THAT(files_with_end(path("cache"), ".incomplete"), testing::IsEmpty());
  }

  FakeHub hub_;
  HubSource::Options options_;
};

}  // namespace lorry
