// The flags of `lorry serve` about who may reach it and how: sockets, TLS, keys, hosts and pages.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "serve/options.h"

namespace CLI {
class App;
}

namespace lorry {

struct AccessFlags {
  std::vector<std::string> keys;
  std::vector<std::string> key_files;
  int64_t max_requests_per_key = 0;
  bool metrics_public = false;
  bool no_web = false;
  std::vector<std::string> cors_origins;
  std::vector<std::string> allowed_hosts;
  std::string uds;
  std::string ssl_certfile;
  std::string ssl_keyfile;
};

void add_access_flags(CLI::App& app, AccessFlags& flags);

// Reads the files. Throws Error naming the flag or the file and its line, never a key.
void set_access(ServerOptions& options, const AccessFlags& flags);

}  // namespace lorry
