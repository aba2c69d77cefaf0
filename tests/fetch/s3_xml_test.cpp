#include "fetch/s3_xml.h"

#include "fetch/support.h"

namespace lorry {
namespace {

TEST(S3Page, is_read_as_the_store_writes_it) {
  const S3Page page = parse_s3_page(
      R"(<?xml version="1.0" encoding="UTF-8"?>
<!-- a comment with <tags> -->
<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/" odd='>'>
  <Name>b</Name><Prefix>x/</Prefix><MaxKeys>2</MaxKeys><IsTruncated>true</IsTruncated>
  <Contents><Key>x/a &amp; &#233;&#x1F600;&lt;&apos;</Key><LastModified>2026</LastModified>
    <ETag>&quot;0123&quot;</ETag><Size>17</Size><Owner><ID>1</ID></Owner></Contents>
  <Contents><Key>x/b</Key><ETag/><Size>0</Size></Contents>
  <CommonPrefixes><Prefix>x/sub/</Prefix></CommonPrefixes>
  <NextContinuationToken>1/=+</NextContinuationToken>
</ListBucketResult>
)",
      "b/x");
  ASSERT_EQ(page.objects.size(), 2U);
  EXPECT_EQ(page.objects[0].key, "x/a & \u00e9\U0001F600<'");
  EXPECT_EQ(page.objects[0].etag, "0123");
  EXPECT_EQ(page.objects[0].size, 17);
  EXPECT_EQ(page.objects[1].key, "x/b");
  EXPECT_EQ(page.objects[1].etag, "");
  EXPECT_EQ(page.objects[1].size, 0);
  EXPECT_EQ(page.next_token, "1/=+");
}

TEST(S3Page, the_last_page_names_no_next_one) {
  EXPECT_EQ(parse_s3_page("<ListBucketResult><IsTruncated>false</IsTruncated>"
                          "<NextContinuationToken>x</NextContinuationToken></ListBucketResult>",
                          "b")
                .next_token,
            "");
}

TEST(S3Page, what_is_no_such_document_is_refused) {
  std::string deep;
  for (int i = 0; i < 100'000; ++i) deep += "<a>";
  const std::string in_page = "<ListBucketResult>";
  for (const std::string& xml : std::vector<std::string>{
           "",
           "words",
           "<a/>",
           "<a></b>",
           "<ListBucketResult>",
           "</a>",
           "<",
           "<a",
           "<!--",
           "<?xml",
           "<!DOCTYPE a [<!ENTITY x \"y\">]><ListBucketResult/>",
           deep,
           in_page + "&x;</ListBucketResult>",
           in_page + "&#0;</ListBucketResult>",
           in_page + "&#x110000;</ListBucketResult>",
           in_page + "& </ListBucketResult>",
           in_page + "<Contents><Size>-1</Size></Contents></ListBucketResult>",
           in_page + "<Contents><Size>99999999999999999999</Size></Contents></ListBucketResult>",
           in_page + "<IsTruncated>true</IsTruncated></ListBucketResult>",
           "<ListBucketResult/><ListBucketResult/>",
           "<html><body>proxy</body></html>"}) {
    const Error error = error_of([&] { parse_s3_page(xml, "b/x"); });
    EXPECT_EQ(error.code(), Code::bad_file) << xml.substr(0, 200);
    EXPECT_THAT(error.what(), testing::StartsWith("b/x: "));
  }
}

TEST(S3Page, no_cut_and_no_changed_byte_does_harm) {
  const std::string xml =
      "<?xml version=\"1.0\"?><ListBucketResult a=\"b\"><Contents><Key>k&amp;</Key><Size>1</Size>"
      "</Contents><IsTruncated>false</IsTruncated></ListBucketResult>";
  const auto parse = [](const std::string& text) {
    try {
      parse_s3_page(text, "x");
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), Code::bad_file);
    }
  };
  for (size_t i = 0; i < xml.size(); ++i) {
    parse(xml.substr(0, i));
    for (const char c : {'<', '>', '/', '&', ';', '"', '\0', 'x'}) {
      std::string changed = xml;
      changed[i] = c;
      parse(changed);
    }
  }
}

TEST(S3Error, is_the_code_or_nothing) {
  EXPECT_EQ(parse_s3_error("<?xml version=\"1.0\"?>\n<Error><Code>NoSuchBucket</Code></Error>"),
            "NoSuchBucket");
  EXPECT_EQ(parse_s3_error("<html>"), "");
  EXPECT_EQ(parse_s3_error(""), "");
}

}  // namespace
}  // namespace lorry
