#include "fetch/s3_xml.h"

#include <charconv>
#include <functional>
#include <optional>

#include "base/error.h"

namespace lorry {

namespace {

constexpr size_t kMaxDepth = 16;

void append_utf8(std::string& out, uint32_t c) {
  const auto byte = [&out](uint32_t b) { out += static_cast<char>(static_cast<unsigned char>(b)); };
  if (c < 0x80) {
    byte(c);
  } else if (c < 0x800) {
    byte(0xc0 | (c >> 6));
    byte(0x80 | (c & 0x3f));
  } else if (c < 0x10000) {
    byte(0xe0 | (c >> 12));
    byte(0x80 | ((c >> 6) & 0x3f));
    byte(0x80 | (c & 0x3f));
  } else {
    byte(0xf0 | (c >> 18));
    byte(0x80 | ((c >> 12) & 0x3f));
    byte(0x80 | ((c >> 6) & 0x3f));
    byte(0x80 | (c & 0x3f));
  }
}

// The text of "lt", "amp", "#39", "#x27"; nothing for what XML does not define.
std::optional<std::string> entity(std::string_view name) {
  if (name == "lt") return "<";
  if (name == "gt") return ">";
  if (name == "amp") return "&";
  if (name == "quot") return "\"";
  if (name == "apos") return "'";
  if (!name.starts_with('#')) return std::nullopt;
  name.remove_prefix(1);
  const bool is_hex = name.starts_with('x');
  if (is_hex) name.remove_prefix(1);
  uint32_t c = 0;
  const auto [end, error] =
      std::from_chars(name.data(), name.data() + name.size(), c, is_hex ? 16 : 10);
  if (error != std::errc() || end != name.data() + name.size() || c == 0 || c > 0x10ffff) {
    return std::nullopt;
  }
  std::string text;
  append_utf8(text, c);
  return text;
}

// Walks a document and reports each element when it ends: its path
// ("ListBucketResult/Contents/Key") and the text in it.
class XmlReader {
 public:
  using OnElement = std::function<void(const std::string& path, const std::string& text)>;

  XmlReader(std::string_view xml, std::string_view label, OnElement on_element)
      : xml_(xml), label_(label), on_element_(std::move(on_element)) {}

  void read() {
    while (at_ < xml_.size()) {
      if (xml_[at_] == '<') {
        tag();
      } else {
        text();
      }
    }
    if (!path_.empty()) refuse("the end is missing");
    if (!any_) refuse("there is no element");
  }

 private:
  [[noreturn]] void refuse(const char* why) const {
    fail(Code::bad_file, "{}: expected S3's XML, but at byte {} {}", label_, at_, why);
  }

  void skip_past(std::string_view end) {
    const size_t found = xml_.find(end, at_);
    if (found == xml_.npos) refuse("a tag has no end");
    at_ = found + end.size();
  }

  void tag() {
    const std::string_view rest = xml_.substr(at_);
    if (rest.starts_with("<?")) return skip_past("?>");
    if (rest.starts_with("<!--")) return skip_past("-->");
    if (rest.starts_with("<!")) refuse("a declaration is not allowed");
    const size_t first = at_ + 1;
    skip_attributes();
    std::string_view inside = xml_.substr(first, at_ - 1 - first);
    if (inside.starts_with('/')) return close(inside.substr(1));
    const bool is_empty = inside.ends_with('/');
    if (is_empty) inside.remove_suffix(1);
    open(inside.substr(0, inside.find_first_of(" \t\r\n")));
    if (is_empty) close(names_.back());
  }

  // To behind the > of a tag; one in quotes is none.
  void skip_attributes() {
    char quoted = '\0';
    for (; at_ < xml_.size(); ++at_) {
      const char c = xml_[at_];
      if (quoted != '\0') {
        if (c == quoted) quoted = '\0';
      } else if (c == '"' || c == '\'') {
        quoted = c;
      } else if (c == '>') {
        ++at_;
        return;
      }
    }
    refuse("a tag has no end");
  }

  void open(std::string_view name) {
    if (name.empty() || (path_.empty() && any_)) refuse("a tag is not expected");
    if (names_.size() == kMaxDepth) refuse("elements are nested too deeply");
    any_ = true;
    names_.emplace_back(name);
    path_ += (path_.empty() ? "" : "/") + std::string(name);
    text_.clear();
  }

  void close(std::string_view name) {
    while (!name.empty() && (name.back() == ' ' || name.back() == '\n')) name.remove_suffix(1);
    if (names_.empty() || names_.back() != name) refuse("a tag ends that was not open");
    on_element_(path_, text_);
    path_.resize(path_.size() - names_.back().size() - (names_.size() > 1 ? 1 : 0));
    names_.pop_back();
    text_.clear();
  }

  void text() {
    const size_t end = std::min(xml_.find('<', at_), xml_.size());
    while (at_ < end) {
      if (xml_[at_] != '&') {
        text_ += xml_[at_++];
        continue;
      }
      const size_t semicolon = xml_.find(';', at_);
      if (semicolon >= end) refuse("a & has no ;");
      const auto meaning = entity(xml_.substr(at_ + 1, semicolon - at_ - 1));
      if (!meaning) refuse("an entity is not known");
      text_ += *meaning;
      at_ = semicolon + 1;
    }
  }

  std::string_view xml_;
  std::string_view label_;
  OnElement on_element_;
  size_t at_ = 0;
  std::vector<std::string> names_;
  std::string path_;  // names_ with slashes
  std::string text_;
  bool any_ = false;
};

int64_t parse_size(const std::string& text, std::string_view label) {
  int64_t n = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), n);
  if (error != std::errc() || end != text.data() + text.size() || n < 0) {
    fail(Code::bad_file, "{}: expected the size of an object in the listing, found {}", label,
         quote(text));
  }
  return n;
}

std::string strip_quotes(std::string s) {
  if (s.size() >= 2 && s.front() == '"' && s.back() == '"') return s.substr(1, s.size() - 2);
  return s;
}

}  // namespace

S3Page parse_s3_page(std::string_view xml, std::string_view label) {
  S3Page page;
  S3Object object;
  bool is_page = false;
  bool is_truncated = false;
  XmlReader reader(xml, label, [&](const std::string& path, const std::string& text) {
    if (path == "ListBucketResult/Contents/Key") {
      object.key = text;
    } else if (path == "ListBucketResult/Contents/ETag") {
      object.etag = strip_quotes(text);
    } else if (path == "ListBucketResult/Contents/Size") {
      object.size = parse_size(text, label);
    } else if (path == "ListBucketResult/Contents") {
      page.objects.push_back(std::exchange(object, {}));
    } else if (path == "ListBucketResult/IsTruncated") {
      is_truncated = text == "true";
    } else if (path == "ListBucketResult/NextContinuationToken") {
      page.next_token = text;
    } else if (path == "ListBucketResult") {
      is_page = true;
    }
  });
  reader.read();
  if (!is_page) fail(Code::bad_file, "{}: expected a ListBucketResult, found other XML", label);
  if (is_truncated && page.next_token.empty()) {
    fail(Code::bad_file, "{}: a page of the listing is not the last and names no next one", label);
  }
  if (!is_truncated) page.next_token.clear();
  return page;
}

std::string parse_s3_error(std::string_view xml) {
  std::string code;
  XmlReader reader(xml, "the error", [&](const std::string& path, const std::string& text) {
    if (path == "Error/Code") code = text;
  });
  try {
    reader.read();
  } catch (const Error&) {
    return {};  // an error page of something else on the way
  }
  return code;
}

}  // namespace lorry
