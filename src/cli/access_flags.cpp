#include "cli/access_flags.h"

#include <algorithm>
#include <limits>

#include <CLI/CLI.hpp>

#include "base/error.h"
#include "cli/values.h"

namespace lorry {

namespace {

constexpr size_t kMaxKeyFile = size_t{1} << 20;

}  // namespace

void add_access_flags(CLI::App& app, AccessFlags& f) {
  const char* group = "Access";
  app.add_option("--uds", f.uds,
                 "Unix socket to listen on, instead of --host and --port (default: none)")
      ->group(group)
      ->type_name(kFile);
  app.add_option("--ssl-certfile", f.ssl_certfile,
                 "Certificate chain (PEM): TLS 1.2 or later is spoken, and nothing else (default: "
                 "none, no TLS)")
      ->group(group)
      ->type_name(kFile);
  app.add_option("--ssl-keyfile", f.ssl_keyfile, "Its key (PEM, not encrypted; default: none)")
      ->group(group)
      ->type_name(kFile);
  app.add_option("--api-key", f.keys,
                 "KEY, NAME:KEY or NAME:KEY:admin, any number: requests need one of them (default: "
                 "none is needed). A file keeps them out of the list of processes")
      ->group(group)
      ->type_name("KEY");
  app.add_option("--api-key-file", f.key_files, "Files with one such key per line (default: none)")
      ->group(group)
      ->type_name(kFile);
  accept_units(app.add_option("--max-requests-per-key", f.max_requests_per_key,
                              "Of one key in work or waiting; more are refused (default: with "
                              "several keys half of --max-concurrent-requests)")
                   ->group(group),
               1, std::numeric_limits<int32_t>::max());
  app.add_flag("--no-web", f.no_web, "No web page at /")->group(group);
  app.add_flag("--metrics-public", f.metrics_public, "/metrics needs no key")->group(group);
  app.add_option("--cors-allow-origin", f.cors_origins,
                 "Origins whose pages may read answers, as https://chat.example.org, or * "
                 "(default: none)")
      ->delimiter(',')
      ->group(group)
      ->type_name("ORIGIN");
  app.add_option("--allowed-hosts", f.allowed_hosts,
                 "Names that the Host header may have beside this machine's own, when listening on "
                 "it alone (default: none)")
      ->delimiter(',')
      ->group(group)
      ->type_name("HOST");
}

void set_access(ServerOptions& o, const AccessFlags& f) {
  for (const std::string& text : f.keys) {
    o.keys.push_back(parse_api_key(text, o.keys.size() + 1));
  }
  for (const std::string& path : f.key_files) {
    const auto more = parse_api_keys(read_flag_file("--api-key-file", path, kMaxKeyFile), path,
                                     o.keys.size() + 1);
    o.keys.insert(o.keys.end(), more.begin(), more.end());
  }
  o.max_requests_per_key = f.max_requests_per_key;
  if (o.max_requests_per_key == 0 && o.keys.size() > 1) {
    o.max_requests_per_key = std::max<int64_t>(o.max_concurrent_requests / 2, 1);
  }
  if (f.ssl_certfile.empty() != f.ssl_keyfile.empty()) {
    fail(Code::invalid_argument, "{} is given without {}",
         f.ssl_keyfile.empty() ? "--ssl-certfile" : "--ssl-keyfile",
         f.ssl_keyfile.empty() ? "--ssl-keyfile" : "--ssl-certfile");
  }
  o.http.uds = f.uds;
  o.http.ssl_certfile = f.ssl_certfile;
  o.http.ssl_keyfile = f.ssl_keyfile;
  o.metrics_public = f.metrics_public;
  o.web = !f.no_web;
  o.cors_origins = f.cors_origins;
  o.allowed_hosts = f.allowed_hosts;
}

}  // namespace lorry
