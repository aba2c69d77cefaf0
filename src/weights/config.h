// Config: config.json with every value checked when it is asked for. Keys may be paths
// ("ffn_config.moe_top_k"). An error names the file, the key, the value found and what is
// allowed. It knows no model's names; it is a value, free to copy.
#pragma once
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <boost/json/object.hpp>

#include "base/json.h"

namespace lorry {

struct IntRange {
  int64_t min;
  int64_t max;
};
struct NumberRange {
  double min;
  double max;
};

class Config {
 public:
  // Throws Error: not_found (no such file), bad_file (not a JSON object).
  static Config read(const std::string& path);
  static Config parse(std::string_view text, const std::string& file);

  const std::string& file() const { return file_; }

  // A key that is there and null counts as absent, except for is_null and the nullable getters.
  bool has(std::string_view key) const;
  bool is_null(std::string_view key) const;

  // Each throws Error(bad_file) when the value is missing and `absent` is not given, when it has
  // another type (1.0 is no integer), or when it is outside the range.
  int64_t integer(std::string_view key, IntRange range, std::optional<int64_t> absent = {}) const;
  double number(std::string_view key, NumberRange range, std::optional<double> absent = {}) const;
  bool boolean(std::string_view key, std::optional<bool> absent = {}) const;
  // `allowed`: the values that are understood; empty: any.
  std::string text(std::string_view key, std::initializer_list<std::string_view> allowed = {},
                   std::optional<std::string> absent = {}) const;

  // Null is an empty answer, a missing key is `absent`.
  std::optional<int64_t> nullable_integer(std::string_view key, IntRange range,
                                          std::optional<int64_t> absent = {}) const;
  std::optional<double> nullable_number(std::string_view key, NumberRange range,
                                        std::optional<double> absent = {}) const;

  // A list, or one value in place of a list of one. Empty when missing or null.
  std::vector<int64_t> integers(std::string_view key, IntRange range) const;
  std::vector<double> numbers(std::string_view key, NumberRange range) const;
  std::vector<std::string> texts(std::string_view key) const;

  // A sub-object; its errors name the whole path. Throws Error(bad_file) when missing.
  Config child(std::string_view key) const;
  // The same, an empty Config when missing or null.
  Config child_or_empty(std::string_view key) const;
  // The keys of a sub-object and their objects (null: empty), in the order of the file. Empty when
  // missing or null.
  std::vector<std::pair<std::string, Config>> children(std::string_view key) const;

  // An error about a combination of values: "<file>: <key> <message>".
  [[noreturn]] void refuse(std::string_view key, std::string_view message) const;
  // The same for a value that is valid, but that Lorry cannot do: Error(unsupported).
  [[noreturn]] void unsupported(std::string_view key, std::string_view message) const;

 private:
  Config(std::string file, std::string prefix, json::object object);
  const json::value* find(std::string_view key) const;      // null when missing
  const json::value* find_set(std::string_view key) const;  // null when missing or null
  [[noreturn]] void wrong(std::string_view key, const json::value& found,
                          std::string_view expected) const;
  [[noreturn]] void missing(std::string_view key, std::string_view expected) const;
  int64_t checked_integer(std::string_view key, const json::value& v, IntRange range) const;
  double checked_number(std::string_view key, const json::value& v, NumberRange range) const;

  std::string file_;
  std::string prefix_;  // "" or "ffn_config."
  json::object object_;
};

}  // namespace lorry
