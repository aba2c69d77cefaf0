#include "fetch/sigv4.h"

#include <algorithm>

#include <fmt/chrono.h>

#include "base/error.h"
#include "base/sha256.h"
#include "base/text.h"
#include "fetch/file_hash.h"

namespace lorry {

std::string canonical_query(const QueryParameters& parameters) {
  QueryParameters encoded;
  for (const auto& [name, value] : parameters) {
    encoded.emplace_back(percent_encode(name, false), percent_encode(value, false));
  }
  std::sort(encoded.begin(), encoded.end());
  std::string query;
  for (const auto& [name, value] : encoded) {
    query += (query.empty() ? "" : "&") + name + "=" + value;
  }
  return query;
}

std::string amz_date_time(std::chrono::system_clock::time_point t) {
  return fmt::format("{:%Y%m%dT%H%M%SZ}", fmt::gmtime(std::chrono::system_clock::to_time_t(t)));
}

FetchRequest::Headers sign_v4(const SignedRequest& request, const S3Credentials& credentials) {
  LORRY_CHECK(!credentials.access_key.empty());
  const std::string no_body = sha256_hex("");
  FetchRequest::Headers added = {{"x-amz-content-sha256", no_body},
                                 {"x-amz-date", request.date_time}};
  if (!credentials.session_token.empty()) {
    added.emplace_back("x-amz-security-token", credentials.session_token);
  }
  FetchRequest::Headers signed_headers = request.headers;
  signed_headers.insert(signed_headers.end(), added.begin(), added.end());
  signed_headers.emplace_back("host", request.url.authority());
  std::sort(signed_headers.begin(), signed_headers.end());
  std::string lines;
  std::string names;
  for (const auto& [name, value] : signed_headers) {
    lines += name + ":" + value + "\n";
    names += (names.empty() ? "" : ";") + name;
  }
  const std::string canonical = "GET\n" + request.url.path + "\n" + request.url.query + "\n" +
                                lines + "\n" + names + "\n" + no_body;

  const std::string date = request.date_time.substr(0, 8);
  const std::string scope = date + "/" + request.region + "/s3/aws4_request";
  const std::string to_sign =
      "AWS4-HMAC-SHA256\n" + request.date_time + "\n" + scope + "\n" + sha256_hex(canonical);
  std::string key = "AWS4" + credentials.secret_key;
  for (const std::string& step :
       {date, request.region, std::string("s3"), std::string("aws4_request")}) {
    key = hmac_sha256(key, step);
  }
  const std::string signature = hmac_sha256(key, to_sign);
  added.emplace_back("authorization",
                     "AWS4-HMAC-SHA256 Credential=" + credentials.access_key + "/" + scope +
                         ", SignedHeaders=" + names +
                         ", Signature=" + to_hex(std::as_bytes(std::span(signature))));
  return added;
}

}  // namespace lorry
