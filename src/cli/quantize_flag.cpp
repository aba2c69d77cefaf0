#include "cli/quantize_flag.h"

#include <array>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "base/error.h"
#include "base/text.h"
#include "cli/values.h"

namespace lorry {

namespace {

using Kind = WeightFormat::Kind;

struct Name {
  std::string_view name;
  WeightFormat format;
  std::string_view ours;  // what LoRAX's name means here; empty: it is ours
};

constexpr WeightFormat kInt8{Kind::int8, 0, false};
constexpr WeightFormat kInt4{Kind::int4, 128, false};

constexpr std::array<Name, 9> kNames{{
    {"int8", kInt8, ""},
    {"int4", kInt4, ""},
    {"int4-32", {Kind::int4, 32, false}, ""},
    {"fp8", {Kind::fp8, 0, false}, ""},
    {"eetq", kInt8, "int8"},
    {"bitsandbytes", kInt8, "int8"},
    {"bitsandbytes-nf4", kInt4, "int4"},
    {"bitsandbytes-fp4", kInt4, "int4"},
    {"hqq-4bit", kInt4, "int4"},
}};

// Names that say how a checkpoint is stored, which it says itself.
constexpr std::array<std::string_view, 3> kStored{"gptq", "awq", "compressed-tensors"};
// Widths that lose too much to be offered.
constexpr std::array<std::string_view, 3> kRefused{"hqq-3bit", "hqq-2bit", "exl2"};

template <size_t N>
bool among(const std::array<std::string_view, N>& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

WeightFormat named_format(const std::string& text, std::string& note) {
  const std::string name = lower_case(text);
  for (const Name& n : kNames) {
    if (n.name != name) continue;
    if (!n.ours.empty()) note = fmt::format("--quantize {}: stored as {}", name, n.ours);
    return n.format;
  }
  if (among(kStored, name)) {
    note = fmt::format("--quantize {}: a checkpoint says itself how it is quantised", name);
    return {};
  }
  if (among(kRefused, name)) {
    fail(Code::invalid_argument, "--quantize {} is not offered: use int4, or int4-32", quote(text));
  }
  std::string known;
  for (const Name& n : kNames) {
    if (n.ours.empty()) known += fmt::format("{}{}", known.empty() ? "" : ", ", n.name);
  }
  fail(Code::invalid_argument, "--quantize {}: expected one of {}", quote(text), known);
}

}  // namespace

void add_quantize_flags(CLI::App& app, QuantizeFlags& flags, const char* group) {
  app.add_option(
         "--quantize", flags.format,
         "How attention and experts are stored: int8 is half the memory and twice the speed, "
         "int4 has scales of 128 weights, int4-32 of 32 and is more exact (default: as they "
         "are; LoRAX's names are understood)")
      ->group(group)
      ->type_name("int8|int4|int4-32|fp8");
  app.add_flag("--quantize-head", flags.head, "Store the output matrix so as well")->group(group);
}

void add_map_flag(CLI::App& app, bool& map, const char* group) {
  app.add_flag("--map-weights", map,
               "With a folder of `lorry quantize`: use the weights where the file is mapped. It "
               "starts at once and shares them with other processes, but decodes more slowly")
      ->group(group);
}

WeightFormats parse_quantize(const QuantizeFlags& flags, std::string& note) {
  if (flags.format.empty()) {
    if (flags.head) fail(Code::invalid_argument, "--quantize-head needs --quantize");
    return {};
  }
  const WeightFormat format = named_format(flags.format, note);
  return {format, flags.head ? format : WeightFormat{}};
}

void add_kv_dtype_flag(CLI::App& app, std::string& text, const char* group) {
  app.add_option("--kv-cache-dtype", text,
                 "Store keys and values as int8: about half the memory, and faster over long texts "
                 "(default: auto, in --dtype)")
      ->group(group)
      ->type_name("auto|bf16|fp16|int8");
}

KvFormat parse_kv_format(const std::string& text, Dtype act) {
  const std::string name = lower_case(text);
  if (name.empty() || name == "auto") return KvFormat::act;
  if (name == "int8") return KvFormat::int8;
  if (name == "bf16" || name == "bfloat16" || name == "fp16" || name == "float16") {
    if (act == (name.starts_with('b') ? Dtype::bf16 : Dtype::f16)) return KvFormat::act;
    fail(Code::invalid_argument,
         "--kv-cache-dtype {} with --dtype {}: expected auto (keys and values in {}) or int8", name,
         dtype_name(act), dtype_name(act));
  }
  fail(Code::invalid_argument, "--kv-cache-dtype {}: expected auto, bf16, fp16 or int8",
       quote(text));
}

std::string format_name(const WeightFormat& f, Dtype act) {
  if (f.plain()) return dtype_name(act);
  const char* kind = f.kind == Kind::int8 ? "int8" : f.kind == Kind::int4 ? "int4" : "fp8";
  return f.group == 0 ? kind : fmt::format("{} in groups of {}", kind, f.group);
}

}  // namespace lorry
