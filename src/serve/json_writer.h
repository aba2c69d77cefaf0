// JsonWriter: writes one JSON text front to back. Numbers are as short as they can be read back
// exactly; what is not UTF-8 becomes U+FFFD; NaN and infinities become null.
#pragma once
#include <concepts>
#include <cstdint>
#include <string>
#include <string_view>

namespace lorry {

class JsonWriter {
 public:
  JsonWriter& begin_object() { return open('{'); }
  JsonWriter& end_object() { return close('}'); }
  JsonWriter& begin_array() { return open('['); }
  JsonWriter& end_array() { return close(']'); }
  JsonWriter& key(std::string_view name);

  JsonWriter& value(std::string_view text);
  JsonWriter& value(const char* text) { return value(std::string_view(text)); }
  JsonWriter& value(const std::string& text) { return value(std::string_view(text)); }
  JsonWriter& value(double number);
  JsonWriter& value(float number);
  JsonWriter& value(std::same_as<bool> auto truth) { return raw(truth ? "true" : "false"); }
  JsonWriter& value(std::integral auto number)
    requires(!std::same_as<decltype(number), bool>)
  {
    return raw(std::to_string(number));
  }
  JsonWriter& null() { return raw("null"); }
  JsonWriter& string_or_null(std::string_view text) { return text.empty() ? null() : value(text); }
  // `text` is JSON already.
  JsonWriter& raw(std::string_view text);

  template <class T>
  JsonWriter& member(std::string_view name, const T& v) {
    return key(name).value(v);
  }
  std::string take() { return std::move(out_); }

 private:
  JsonWriter& open(char bracket);
  JsonWriter& close(char bracket);
  void separate();

  std::string out_;
  bool need_comma_ = false;
};

// Appends `text` as a JSON string, quotes included.
void append_json_string(std::string& out, std::string_view text);
// Number of bytes of the whole UTF-8 character at the front of `text`; 0 when it is none.
size_t utf8_length(std::string_view text);
// Number of characters (code points) of UTF-8 text.
size_t count_characters(std::string_view text);

}  // namespace lorry
