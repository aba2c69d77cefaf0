#include "fetch/sigv4.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/text.h"

namespace lorry {
namespace {

using testing::EndsWith;

std::string value_of(const FetchRequest::Headers& headers, const std::string& name) {
  for (const auto& [n, value] : headers) {
    if (n == name) return value;
  }
  return "(none)";
}

// The examples of AWS's documentation, "Signature Calculations for the Authorization Header".
class AwsExamples : public testing::Test {
 protected:
  std::string authorization(const std::string& url,
                            const FetchRequest::Headers& headers = {}) const {
    return value_of(sign_v4({.url = parse_url(url, "the example"),
                             .headers = headers,
                             .region = "us-east-1",
                             .date_time = "20130524T000000Z"},
                            credentials_),
                    "authorization");
  }
  S3Credentials credentials_{.access_key = "AKIAIOSFODNN7EXAMPLE",
                             .secret_key = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"};
};

TEST_F(AwsExamples, get_object) {
  EXPECT_EQ(
      authorization("https://examplebucket.s3.amazonaws.com/test.txt", {{"range", "bytes=0-9"}}),
      "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request, "
      "SignedHeaders=host;range;x-amz-content-sha256;x-amz-date, "
      "Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41");
}

TEST_F(AwsExamples, get_bucket_lifecycle) {
  EXPECT_THAT(
      authorization("https://examplebucket.s3.amazonaws.com/?lifecycle="),
      EndsWith("Signature=fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"));
}

TEST_F(AwsExamples, get_bucket_list_objects) {
  EXPECT_EQ(canonical_query({{"prefix", "J"}, {"max-keys", "2"}}), "max-keys=2&prefix=J");
  EXPECT_THAT(
      authorization("https://examplebucket.s3.amazonaws.com/?max-keys=2&prefix=J"),
      EndsWith("Signature=34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"));
}

// Signatures of botocore 1.44.8 (S3SigV4Auth), for what the examples do not have: a port, names
// that must be encoded, temporary credentials.
class Botocore : public testing::Test {
 protected:
  FetchRequest::Headers sign(const std::string& path, const QueryParameters& query) const {
    Url url = parse_url("http://127.0.0.1:9000", "the endpoint");
    url.path = percent_encode(path, true);
    url.query = canonical_query(query);
    return sign_v4({.url = url, .region = "eu-central-1", .date_time = "20260102T030405Z"},
                   {.access_key = "AKIDEXAMPLE",
                    .secret_key = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY",
                    .session_token = "session/token=="});
  }
};

TEST_F(Botocore, a_key_that_must_be_encoded) {
  const FetchRequest::Headers headers = sign("/bucket/a b+c/\u00e9(x)~.safetensors", {});
  EXPECT_EQ(value_of(headers, "x-amz-date"), "20260102T030405Z");
  EXPECT_EQ(value_of(headers, "x-amz-security-token"), "session/token==");
  EXPECT_EQ(value_of(headers, "x-amz-content-sha256"),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(value_of(headers, "authorization"),
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20260102/eu-central-1/s3/aws4_request, "
            "SignedHeaders=host;x-amz-content-sha256;x-amz-date;x-amz-security-token, "
            "Signature=13297304305d26cfbe5f6ed0df3b1a5828f02392a6379181e532e695b8c1dbdf");
}

TEST_F(Botocore, a_query_that_must_be_encoded_and_sorted) {
  const FetchRequest::Headers headers = sign("/bucket", {{"list-type", "2"},
                                                         {"delimiter", "/"},
                                                         {"prefix", "a b+c/\u00e9/"},
                                                         {"continuation-token", "1=&x/y"}});
  EXPECT_THAT(
      value_of(headers, "authorization"),
      EndsWith("Signature=66a07e0ba2cefabce4f23c5dc18e6d76eadca5d0d8cca48e82a8ed0b760efc54"));
}

TEST(AmzDateTime, is_utc_to_the_second) {
  using std::chrono::seconds;
  EXPECT_EQ(amz_date_time(std::chrono::system_clock::time_point(seconds(1369353600))),
            "20130524T000000Z");
}

}  // namespace
}  // namespace lorry
