#include "base/json.h"

#include <cmath>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <boost/json/basic_parser_impl.hpp>
#include <boost/json/src.hpp>
#include <boost/json/value_stack.hpp>

#include "base/error.h"
#include "base/files.h"

namespace lorry {

namespace {

// Builds a value and refuses a key that its object already has.
class Handler {
 public:
  static constexpr size_t max_object_size = static_cast<size_t>(-1);
  static constexpr size_t max_array_size = static_cast<size_t>(-1);
  static constexpr size_t max_key_size = static_cast<size_t>(-1);
  static constexpr size_t max_string_size = static_cast<size_t>(-1);
  using Ec = boost::json::error_code;

  json::value release() { return stack_.release(); }
  // What the handler itself refused; empty when it was the parser, or nothing.
  const std::string& refused() const { return refused_; }

  bool on_document_begin(Ec&) {
    stack_.reset();
    return true;
  }
  bool on_document_end(Ec&) { return true; }
  bool on_object_begin(Ec&) {
    keys_.emplace_back();
    return true;
  }
  bool on_object_end(size_t n, Ec&) {
    keys_.pop_back();
    stack_.push_object(n);
    return true;
  }
  bool on_array_begin(Ec&) { return true; }
  bool on_array_end(size_t n, Ec&) {
    stack_.push_array(n);
    return true;
  }
  bool on_key_part(json::string_view s, size_t, Ec&) {
    key_.append(s.data(), s.size());
    stack_.push_chars(s);
    return true;
  }
  bool on_key(json::string_view s, size_t, Ec& ec) {
    key_.append(s.data(), s.size());
    if (!keys_.back().insert(key_).second) {
      return refuse(fmt::format("the key {} occurs twice in one object", quote(key_)), ec);
    }
    key_.clear();
    stack_.push_key(s);
    return true;
  }
  bool on_string_part(json::string_view s, size_t, Ec&) {
    stack_.push_chars(s);
    return true;
  }
  bool on_string(json::string_view s, size_t, Ec&) {
    stack_.push_string(s);
    return true;
  }
  bool on_number_part(json::string_view, Ec&) { return true; }
  bool on_int64(int64_t i, json::string_view, Ec&) {
    stack_.push_int64(i);
    return true;
  }
  bool on_uint64(uint64_t u, json::string_view, Ec&) {
    stack_.push_uint64(u);
    return true;
  }
  bool on_double(double d, json::string_view, Ec& ec) {
    if (!std::isfinite(d)) return refuse("the number is too large", ec);
    stack_.push_double(d);
    return true;
  }
  bool on_bool(bool b, Ec&) {
    stack_.push_bool(b);
    return true;
  }
  bool on_null(Ec&) {
    stack_.push_null();
    return true;
  }
  bool on_comment_part(json::string_view, Ec&) { return true; }
  bool on_comment(json::string_view, Ec&) { return true; }

 private:
  bool refuse(std::string why, Ec& ec) {
    refused_ = std::move(why);
    ec = boost::json::error::extra_data;
    return false;
  }

  boost::json::value_stack stack_;
  std::vector<std::set<std::string, std::less<>>> keys_;
  std::string key_;
  std::string refused_;
};

}  // namespace

json::value parse_json(std::string_view text, std::string_view what, const JsonLimits& limits) {
  boost::json::parse_options options;
  options.max_depth = static_cast<size_t>(limits.max_depth);
  boost::json::basic_parser<Handler> parser(options);
  boost::json::error_code ec;
  const size_t n = parser.write_some(false, text.data(), text.size(), ec);
  if (const std::string& refused = parser.handler().refused(); !refused.empty()) {
    fail(Code::bad_file, "{}: {} (byte {})", what, refused, n);
  }
  if (ec) fail(Code::bad_file, "{}: not valid JSON at byte {}: {}", what, n, ec.message());
  const size_t rest = text.find_first_not_of(" \t\r\n", n);
  if (rest != std::string_view::npos) {
    fail(Code::bad_file, "{}: bytes after the end of the JSON value (byte {})", what, rest);
  }
  return parser.handler().release();
}

json::value parse_json_file(const std::string& path, size_t max_bytes) {
  return parse_json(read_file(path, max_bytes), path);
}

}  // namespace lorry
