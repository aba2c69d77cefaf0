#include "cli/values.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <string_view>

#include <CLI/CLI.hpp>

#include "base/error.h"
#include "base/files.h"
#include "base/text.h"

namespace lorry {

namespace {

// 0: no such unit.
double unit(std::string_view name) {
  constexpr std::array<std::pair<std::string_view, double>, 13> kUnits{{{"", 1},
                                                                        {"k", 1e3},
                                                                        {"K", 1e3},
                                                                        {"M", 1e6},
                                                                        {"G", 1e9},
                                                                        {"T", 1e12},
                                                                        {"Ki", 1024.0},
                                                                        {"Mi", 1048576.0},
                                                                        {"Gi", 1073741824.0},
                                                                        {"Ti", 1099511627776.0},
                                                                        {"kB", 1e3},
                                                                        {"MB", 1e6},
                                                                        {"GB", 1e9}}};
  for (const auto& [unit_name, factor] : kUnits) {
    if (name == unit_name) return factor;
  }
  return 0;
}

}  // namespace

int64_t parse_count(const std::string& text) {
  double number = 0;
  const char* end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, number, std::chars_format::fixed);
  const double factor = unit({rest, static_cast<size_t>(end - rest)});
  const double value = number * factor;
  if (error != std::errc() || factor == 0 || std::abs(value) > 9e15 || value != std::floor(value)) {
    fail(Code::invalid_argument,
         "{} is no whole number; expected one like 4096, 4k, 64M, 1.5G or 8Gi", quote(text));
  }
  return static_cast<int64_t>(value);
}

void accept_units(CLI::Option* option, int64_t min, int64_t max) {
  const auto to_number = [min, max](std::string& text) -> std::string {
    try {
      const int64_t value = parse_count(text);
      if (value < min || value > max) {
        return fmt::format("{} is outside of {} to {}", value, min, max);
      }
      text = std::to_string(value);
      return "";
    } catch (const Error& e) {
      return e.what();
    }
  };
  option->transform(CLI::Validator(to_number, ""))->type_name("N");
}

void accept_range(CLI::Option* option, double min, double max) {
  CLI::Validator range = CLI::Range(min, max);
  range.description("");  // the help says it in words
  option->check(range)->type_name("N");
  option->check([](const std::string& text) {  // NaN is below nothing and above nothing
    return std::isnan(std::strtod(text.c_str(), nullptr)) ? text + " is no number" : std::string();
  });
}

NamedPath parse_name_or_path(const std::string& text) {
  const size_t equals = text.find('=');
  if (equals == std::string::npos) return {text, ""};
  return parse_named_path(text);
}

NamedPath parse_named_path(const std::string& text) {
  const size_t equals = text.find('=');
  if (equals == std::string::npos || equals == 0 || equals + 1 == text.size()) {
    fail(Code::invalid_argument, "{} names no adapter: expected NAME=FOLDER", quote(text));
  }
  return {text.substr(0, equals), text.substr(equals + 1)};
}

std::string read_flag_file(const std::string& flag, const std::string& path, size_t max_bytes) {
  try {
    return read_file(path, max_bytes);
  } catch (const Error& e) {
    fail(e.code(), "{}: {}", flag, e.what());
  }
}

Dtype parse_dtype(const std::string& text) {
  const std::string name = lower_case(text);
  if (name == "bfloat16" || name == "bf16") return Dtype::bf16;
  if (name == "float16" || name == "fp16" || name == "f16" || name == "half") return Dtype::f16;
  if (name == "float32" || name == "fp32" || name == "f32") return Dtype::f32;
  fail(Code::invalid_argument, "--dtype {}: expected bfloat16, float16 or float32", quote(text));
}

const char* dtype_name(Dtype dtype) {
  return dtype == Dtype::f32 ? "float32" : dtype == Dtype::f16 ? "float16" : "bfloat16";
}

Topology parse_numa(const std::string& text) {
  if (text != "auto" && text != "off") {
    fail(Code::invalid_argument, "--numa {}: expected auto or off", quote(text));
  }
  return text == "off" ? Topology{} : read_topology();
}

LogLevel parse_log_level(const std::string& text) {
  const std::string name = lower_case(text);
  if (name == "debug") return LogLevel::debug;
  if (name == "info") return LogLevel::info;
  if (name == "warn" || name == "warning") return LogLevel::warn;
  if (name == "error") return LogLevel::error;
  if (name == "off") return LogLevel::off;
  fail(Code::invalid_argument, "--log-level {}: expected debug, info, warn, error or off",
       quote(text));
}

}  // namespace lorry
