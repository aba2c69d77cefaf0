// Reading what clients send as JSON: members, texts, and how a value is refused.
#pragma once
#include <string>
#include <string_view>

#include <boost/json/object.hpp>
#include <boost/json/value.hpp>

#include "base/json.h"

namespace lorry {

// What a value is, for messages: "a string".
std::string_view kind_of(const json::value& value);

// Requires: a string.
std::string text_of(const json::value& value);

// Null where there is none; a null is as good as absent.
const json::value* member(const json::object& object, std::string_view name);

// Throws RequestError(bad_value): "`field` what".
[[noreturn]] void refuse_field(std::string_view field, const std::string& what);

}  // namespace lorry
