// JsonPoster: sends JSON to one URL over libcurl. One thread at a time.
#pragma once
#include <memory>
#include <string>

namespace lorry {

class JsonPoster {
 public:
  // http or https; certificates are checked. Throws Error(invalid_argument) for another URL.
  explicit JsonPoster(std::string url);
  ~JsonPoster();
  JsonPoster(const JsonPoster&) = delete;
  JsonPoster& operator=(const JsonPoster&) = delete;

  // True when the answer has a status of 2xx. Returns within five seconds.
  bool post(const std::string& body);

 private:
  struct Handle;
  std::unique_ptr<Handle> handle_;
};

}  // namespace lorry
