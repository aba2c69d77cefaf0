// --quantize and --kv-cache-dtype: what a model's linears are stored as, in our names and in
// LoRAX's, and its keys and values, in vLLM's.
#pragma once
#include <string>

#include "models/spec.h"

namespace CLI {
class App;
}

namespace lorry {

struct QuantizeFlags {
  std::string format;
  bool head = false;
};

void add_quantize_flags(CLI::App& app, QuantizeFlags& flags, const char* group);

void add_map_flag(CLI::App& app, bool& map, const char* group);

// Plain without --quantize; `note` says what a name of LoRAX means here, and stays empty
// otherwise. Throws Error(invalid_argument) listing the names, or with the reason why one is not
// offered.
WeightFormats parse_quantize(const QuantizeFlags& flags, std::string& note);

void add_kv_dtype_flag(CLI::App& app, std::string& text, const char* group);

// --kv-cache-dtype: auto (or empty), bf16, int8. Throws Error(invalid_argument) for other names,
// and for bf16 where everything is computed in float32.
KvFormat parse_kv_format(const std::string& text, Dtype act);

// "int4 in groups of 128", "bfloat16"; for people.
std::string format_name(const WeightFormat& format, Dtype act);

}  // namespace lorry
