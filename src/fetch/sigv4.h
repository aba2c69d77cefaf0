// AWS's Signature Version 4 for requests without a body, in headers: what S3 and its likes ask for.
// https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
#pragma once
#include <chrono>
#include <string>
#include <utility>
#include <vector>

#include "fetch/http_client.h"

namespace lorry {

struct S3Credentials {
  std::string access_key;  // empty: requests are not signed
  std::string secret_key;
  std::string session_token = {};  // of temporary credentials
};

// Names and values, not encoded.
using QueryParameters = std::vector<std::pair<std::string, std::string>>;
// Encoded and in the order that is signed: also what is sent.
std::string canonical_query(const QueryParameters& parameters);

struct SignedRequest {
  Url url;  // with path and query encoded as by percent_encode (base/text.h)
  FetchRequest::Headers headers = {};  // signed as well; names in lower case
  std::string region;
  std::string date_time;  // "20130524T000000Z"
};

std::string amz_date_time(std::chrono::system_clock::time_point t);

// The headers that make the GET request a signed one: x-amz-date, x-amz-content-sha256,
// x-amz-security-token where there is a token, authorization. The Host header must be
// url.authority(). Requires: an access key.
FetchRequest::Headers sign_v4(const SignedRequest& request, const S3Credentials& credentials);

}  // namespace lorry
