// Values as people type them: sizes with units, name=path pairs, types of numbers, levels of the
// log.
#pragma once
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "base/log.h"
#include "base/topology.h"
#include "lorry/tensor.h"

namespace CLI {
class Option;
}

namespace lorry {

// What stands for a value in the help: completion offers folders, files, or what is listed as
// "one|other" (a list that the flag's own parser checks).
inline constexpr const char* kFolder = "FOLDER";
inline constexpr const char* kFile = "FILE";
inline constexpr const char* kModel = "MODEL";
inline constexpr const char* kNamedFolder = "NAME=FOLDER";
inline constexpr const char* kDtypes = "bfloat16|float16|float32";
inline constexpr const char* kDevices = "auto|cpu|cuda";
inline constexpr const char* kNuma = "auto|off";
inline constexpr const char* kIsas = "amx|avx512_fma|avx512|avx2|scalar";
inline constexpr const char* kLogLevels = "debug|info|warn|error|off";

// "4096", "4k", "1.5G": k, M, G, T are powers of 1000; Ki, Mi, Gi, Ti powers of 1024.
// Throws Error(invalid_argument).
int64_t parse_count(const std::string& text);
// The option's value may have a unit; its number must be within [min, max].
void accept_units(CLI::Option* option, int64_t min, int64_t max);

// The option's number must be within [min, max].
void accept_range(CLI::Option* option, double min, double max);

struct NamedPath {
  std::string name;
  std::string path;  // empty when only a name was given
};
// "NAME=PATH". Throws Error(invalid_argument) when either is missing.
NamedPath parse_named_path(const std::string& text);
// "NAME" or "NAME=PATH".
NamedPath parse_name_or_path(const std::string& text);

// The file that a flag names. Throws Error as read_file does, with the flag before it.
std::string read_flag_file(const std::string& flag, const std::string& path, size_t max_bytes);

// "bfloat16", "bf16", "float16", "fp16", "f16", "half", "float32", "fp32", "f32". Throws
// Error(invalid_argument).
Dtype parse_dtype(const std::string& text);
// As --dtype spells it.
const char* dtype_name(Dtype dtype);

// "auto": the nodes that this process may use; "off": none. Throws Error(invalid_argument).
Topology parse_numa(const std::string& text);

// "debug", "info", "warn", "error", "off", in any case. Throws Error(invalid_argument).
LogLevel parse_log_level(const std::string& text);

}  // namespace lorry
