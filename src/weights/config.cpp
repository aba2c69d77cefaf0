#include "weights/config.h"

#include <algorithm>
#include <utility>

#include <boost/json/serialize.hpp>
#include <fmt/ranges.h>

#include "base/error.h"

namespace lorry {

namespace {

constexpr size_t kMaxConfigBytes = size_t{16} << 20;

std::string_view view_of(const json::string& s) { return {s.data(), s.size()}; }

json::string_view key_of(std::string_view s) { return {s.data(), s.size()}; }

json::object object_of(json::value value, const std::string& file) {
  if (!value.is_object()) fail(Code::bad_file, "{}: expected a JSON object", file);
  return std::move(value.as_object());
}

// A list's elements, or the value itself as a list of one.
template <class F>
void for_each_element(const json::value& value, F&& f) {
  if (!value.is_array()) return f(value);
  for (const json::value& element : value.as_array()) f(element);
}

// The value as JSON, shortened.
std::string shown(const json::value& value) {
  constexpr size_t kMax = 80;
  const std::string text = json::serialize(value);
  return text.size() <= kMax ? text : quote(text, kMax);
}

std::string expected_integer(IntRange range) {
  return fmt::format("an integer from {} to {}", range.min, range.max);
}

std::string expected_number(NumberRange range) {
  return fmt::format("a number from {} to {}", range.min, range.max);
}

}  // namespace

Config::Config(std::string file, std::string prefix, json::object object)
    : file_(std::move(file)), prefix_(std::move(prefix)), object_(std::move(object)) {}

Config Config::read(const std::string& path) {
  return {path, "", object_of(parse_json_file(path, kMaxConfigBytes), path)};
}

Config Config::parse(std::string_view text, const std::string& file) {
  return {file, "", object_of(parse_json(text, file), file)};
}

const json::value* Config::find(std::string_view key) const {
  const json::object* object = &object_;
  std::string path = prefix_;
  for (size_t dot = key.find('.'); dot != std::string_view::npos; dot = key.find('.')) {
    const std::string_view head = key.substr(0, dot);
    const json::value* inner = object->if_contains(key_of(head));
    if (inner == nullptr || inner->is_null()) return nullptr;
    path += head;
    if (!inner->is_object()) {
      fail(Code::bad_file, "{}: {} is {}, expected an object", file_, path, shown(*inner));
    }
    path += '.';
    object = &inner->as_object();
    key.remove_prefix(dot + 1);
  }
  return object->if_contains(key_of(key));
}

const json::value* Config::find_set(std::string_view key) const {
  const json::value* value = find(key);
  return value == nullptr || value->is_null() ? nullptr : value;
}

void Config::wrong(std::string_view key, const json::value& found,
                   std::string_view expected) const {
  fail(Code::bad_file, "{}: {}{} is {}, expected {}", file_, prefix_, key, shown(found), expected);
}

void Config::missing(std::string_view key, std::string_view expected) const {
  fail(Code::bad_file, "{}: {}{} is missing, expected {}", file_, prefix_, key, expected);
}

void Config::refuse(std::string_view key, std::string_view message) const {
  fail(Code::bad_file, "{}: {}{} {}", file_, prefix_, key, message);
}

void Config::unsupported(std::string_view key, std::string_view message) const {
  fail(Code::unsupported, "{}: {}{} {}", file_, prefix_, key, message);
}

bool Config::has(std::string_view key) const { return find_set(key) != nullptr; }

bool Config::is_null(std::string_view key) const {
  const json::value* value = find(key);
  return value != nullptr && value->is_null();
}

int64_t Config::checked_integer(std::string_view key, const json::value& v, IntRange range) const {
  if (v.is_int64() && v.get_int64() >= range.min && v.get_int64() <= range.max) {
    return v.get_int64();
  }
  wrong(key, v, expected_integer(range));
}

double Config::checked_number(std::string_view key, const json::value& v, NumberRange range) const {
  if (v.is_number()) {
    const auto number = v.to_number<double>();
    if (number >= range.min && number <= range.max) return number;
  }
  wrong(key, v, expected_number(range));
}

int64_t Config::integer(std::string_view key, IntRange range, std::optional<int64_t> absent) const {
  const json::value* value = find_set(key);
  if (value != nullptr) return checked_integer(key, *value, range);
  if (!absent) missing(key, expected_integer(range));
  return *absent;
}

double Config::number(std::string_view key, NumberRange range, std::optional<double> absent) const {
  const json::value* value = find_set(key);
  if (value != nullptr) return checked_number(key, *value, range);
  if (!absent) missing(key, expected_number(range));
  return *absent;
}

bool Config::boolean(std::string_view key, std::optional<bool> absent) const {
  const json::value* value = find_set(key);
  if (value == nullptr) {
    if (!absent) missing(key, "true or false");
    return *absent;
  }
  if (!value->is_bool()) wrong(key, *value, "true or false");
  return value->get_bool();
}

std::string Config::text(std::string_view key, std::initializer_list<std::string_view> allowed,
                         std::optional<std::string> absent) const {
  const std::string expected =
      allowed.size() == 0 ? "a string" : fmt::format("one of: {}", fmt::join(allowed, ", "));
  const json::value* value = find_set(key);
  if (value == nullptr) {
    if (!absent) missing(key, expected);
    return *absent;
  }
  if (!value->is_string()) wrong(key, *value, expected);
  const std::string_view found = view_of(value->get_string());
  if (allowed.size() != 0 && std::find(allowed.begin(), allowed.end(), found) == allowed.end()) {
    wrong(key, *value, expected);
  }
  return std::string(found);
}

std::optional<int64_t> Config::nullable_integer(std::string_view key, IntRange range,
                                                std::optional<int64_t> absent) const {
  if (is_null(key)) return std::nullopt;
  const json::value* value = find(key);
  return value == nullptr ? absent : checked_integer(key, *value, range);
}

std::optional<double> Config::nullable_number(std::string_view key, NumberRange range,
                                              std::optional<double> absent) const {
  if (is_null(key)) return std::nullopt;
  const json::value* value = find(key);
  return value == nullptr ? absent : checked_number(key, *value, range);
}

std::vector<int64_t> Config::integers(std::string_view key, IntRange range) const {
  std::vector<int64_t> list;
  if (const json::value* value = find_set(key)) {
    for_each_element(*value, [&](const json::value& element) {
      list.push_back(checked_integer(key, element, range));
    });
  }
  return list;
}

std::vector<double> Config::numbers(std::string_view key, NumberRange range) const {
  std::vector<double> list;
  if (const json::value* value = find_set(key)) {
    for_each_element(*value, [&](const json::value& element) {
      list.push_back(checked_number(key, element, range));
    });
  }
  return list;
}

std::vector<std::string> Config::texts(std::string_view key) const {
  std::vector<std::string> list;
  if (const json::value* value = find_set(key)) {
    for_each_element(*value, [&](const json::value& element) {
      if (!element.is_string()) wrong(key, *value, "a string or a list of strings");
      list.emplace_back(view_of(element.get_string()));
    });
  }
  return list;
}

Config Config::child(std::string_view key) const {
  if (find_set(key) == nullptr) missing(key, "an object");
  return child_or_empty(key);
}

Config Config::child_or_empty(std::string_view key) const {
  const std::string prefix = fmt::format("{}{}.", prefix_, key);
  const json::value* value = find_set(key);
  if (value == nullptr) return {file_, prefix, {}};
  if (!value->is_object()) wrong(key, *value, "an object");
  return {file_, prefix, value->get_object()};
}

std::vector<std::pair<std::string, Config>> Config::children(std::string_view key) const {
  std::vector<std::pair<std::string, Config>> list;
  const json::value* value = find_set(key);
  if (value == nullptr) return list;
  if (!value->is_object()) wrong(key, *value, "an object");
  for (const auto& [name, inner] : value->get_object()) {
    const std::string path = fmt::format("{}.{}", key, std::string_view(name));
    if (!inner.is_object() && !inner.is_null()) wrong(path, inner, "an object");
    list.emplace_back(name, Config(file_, prefix_ + path + '.',
                                   inner.is_null() ? json::object() : inner.get_object()));
  }
  return list;
}

}  // namespace lorry
