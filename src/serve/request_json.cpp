#include "serve/request_json.h"

#include <fmt/format.h>

#include "serve/errors.h"

namespace lorry {

std::string_view kind_of(const json::value& value) {
  switch (value.kind()) {
    case json::kind::null:
      return "null";
    case json::kind::bool_:
      return "a boolean";
    case json::kind::int64:
    case json::kind::uint64:
      return "an integer";
    case json::kind::double_:
      return "a number with a fraction or exponent";
    case json::kind::string:
      return "a string";
    case json::kind::array:
      return "a list";
    case json::kind::object:
      break;
  }
  return "an object";
}

std::string text_of(const json::value& value) {
  return {value.as_string().data(), value.as_string().size()};
}

const json::value* member(const json::object& object, std::string_view name) {
  const json::value* found = object.if_contains({name.data(), name.size()});
  return found == nullptr || found->is_null() ? nullptr : found;
}

void refuse_field(std::string_view field, const std::string& what) {
  throw RequestError(Problem::bad_value, fmt::format("`{}` {}", field, what), std::string(field));
}

}  // namespace lorry
