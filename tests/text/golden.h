// The golden cases' tokenizers, written by HF tokenizers and transformers.
#pragma once
#include <string>
#include <vector>

#include "base/files.h"
#include "base/json.h"
#include "text/tokenizer.h"

namespace lorry::golden {

inline const std::vector<std::string>& cases() {
  static const std::vector<std::string> names = {"dbrx-base", "mixtral-base", "mixtral-sliding",
                                                 "mixtral-v5-target-parameters"};
  return names;
}

inline std::string folder(const std::string& name) {
  return std::string(LORRY_SOURCE_DIR) + "/tests/golden/" + name;
}

inline Tokenizer load(const std::string& name) { return Tokenizer::load(folder(name) + "/model"); }

inline json::object expected(const std::string& name) {
  return parse_json_file(folder(name) + "/golden.json").as_object().at("tokenizer").as_object();
}

inline std::vector<int32_t> ids(const json::value& list) {
  std::vector<int32_t> result;
  for (const json::value& id : list.as_array()) result.push_back(id.to_number<int32_t>());
  return result;
}

inline std::string text(const json::value& value) { return std::string(value.as_string()); }

}  // namespace lorry::golden
