// The two XML documents that S3 answers with here: a page of ListObjectsV2, and an error. A reader
// of elements and text, strict and without recursion; it takes no DOCTYPE and no entities of its
// own.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace lorry {

struct S3Object {
  std::string key;
  std::string etag;  // without quotes; may be empty
  int64_t size = -1;
};

struct S3Page {
  std::vector<S3Object> objects;
  std::string next_token;  // empty on the last page
};

// Throws Error(bad_file) with the byte offset for what is no such document; `label` starts the
// message.
S3Page parse_s3_page(std::string_view xml, std::string_view label);

// The <Code> of an error, e.g. NoSuchBucket; empty where the text is no such document.
std::string parse_s3_error(std::string_view xml);

}  // namespace lorry
