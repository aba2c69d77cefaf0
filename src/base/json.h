// Strict JSON reading for files and requests: UTF-8 checked, nesting limited, duplicate keys
// refused, nothing after the value.
#pragma once
#include <string_view>

#include <boost/json/value.hpp>

namespace lorry {

namespace json = boost::json;

struct JsonLimits {
  int max_depth = 64;
};

// Throws Error(bad_file) with the byte offset and what is wrong there; `what` names the source
// ("config.json of /models/x"). Requests are read with it too: their handler maps the code.
json::value parse_json(std::string_view text, std::string_view what, const JsonLimits& limits = {});

// Reads and parses a whole file of at most `max_bytes`. Throws Error(not_found | bad_file).
json::value parse_json_file(const std::string& path, size_t max_bytes = size_t{64} << 20);

}  // namespace lorry
