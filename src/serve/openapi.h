// The description of the API that /api-doc/openapi.json and /docs give out. Its requests are made
// from the table of fields that validates them (fields.h) and its paths from the table of routes,
// so that neither can say what the other does not do.
#pragma once
#include <span>
#include <string>
#include <string_view>

#include "base/json.h"
#include "serve/fields.h"

namespace lorry {

// A route as the server knows it.
struct RouteName {
  std::string_view method;
  std::string_view path;  // one that ends with / stands for all below it
  bool admin = false;
};

// OpenAPI 3.1.
json::object openapi_document(const Limits& limits, const std::string& version,
                              std::span<const RouteName> routes);
// The same for people: one page of HTML that needs nothing from elsewhere.
std::string docs_page(const json::object& document);

// openapi_schemas.cpp, as JSON: the schemas of answers and of fields that are read by hand; what is
// said about routes, by "METHOD /path"; defaults and meanings of fields.
std::string_view openapi_schemas();
std::string_view openapi_routes();
std::string_view openapi_notes();

}  // namespace lorry
