// Url: an http or https address in parts, read by libcurl's own parser, so that what is checked
// here is what libcurl connects to.
#pragma once
#include <string>
#include <string_view>

namespace lorry {

struct Url {
  std::string scheme;  // "http" or "https"
  std::string host;    // lower case
  std::string port;    // always given
  std::string path;    // percent-encoded, starts with /
  std::string query;   // percent-encoded, without the ?; may hold a signature: never shown

  // The whole, for libcurl.
  std::string text() const;
  // "host", or "host:port" where the port is not the scheme's own: the value of the Host header.
  std::string authority() const;
  // Without the query: for messages.
  std::string shown() const;
  // What an Authorization header may be sent to: scheme, host and port are equal.
  bool same_origin(const Url& other) const;
};

// Throws Error(invalid_argument) for what is no http or https URL, and for one with a user name or
// a password in it. `what` names the text in the message, which does not repeat it.
Url parse_url(const std::string& text, std::string_view what);

// Where `location`, absolute or relative, leads from `from`. Throws Error(unavailable) where it is
// no such URL, or leads from https to http.
Url redirect_target(const Url& from, const std::string& location);

}  // namespace lorry
