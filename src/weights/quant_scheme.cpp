#include "weights/quant_scheme.h"

#include <filesystem>
#include <optional>
#include <string_view>

#include "base/error.h"
#include "base/files.h"
#include "base/text.h"

namespace lorry {

namespace {

using Kind = QuantScheme::Kind;
using Layout = QuantScheme::Layout;

constexpr std::string_view kUsePlain = "load the plain checkpoint with --quantize instead";
constexpr IntRange kBits{1, 64};
constexpr IntRange kGroup{-1, 1 << 20};

std::string lower_text(const Config& c, std::string_view key, std::string absent) {
  return lower_case(c.text(key, {}, std::move(absent)));
}

// -1, the whole row, becomes 0.
int32_t checked_group(const Config& c, std::string_view key, int64_t group) {
  if (group == -1) return 0;
  if (group == 0 || group % 32 != 0) {
    c.unsupported(key, fmt::format("is {}: groups must be a multiple of 32, or -1 for whole rows; "
                                   "{}",
                                   group, kUsePlain));
  }
  return static_cast<int32_t>(group);
}

Kind int_kind(const Config& c, std::string_view key) {
  const int64_t bits = c.integer(key, kBits);
  if (bits != 4 && bits != 8) {
    c.unsupported(key, fmt::format("is {}: only 4 and 8 bits are read; {}", bits, kUsePlain));
  }
  return bits == 4 ? Kind::int4 : Kind::int8;
}

// Overrides per module: "-:pattern" leaves modules as they are, others change bits or groups.
void check_overrides(const Config& c) {
  for (const auto& [pattern, values] : c.children("dynamic")) {
    if (!pattern.starts_with("-:")) {
      c.unsupported("dynamic", fmt::format("changes the quantisation of modules {}: one scheme for "
                                           "all quantised modules is read; {}",
                                           quote(pattern), kUsePlain));
    }
  }
}

// AutoGPTQ 0.7.1 (modeling/_base.py: BaseQuantizeConfig, for which desc_act is the default) and
// GPTQModel 2.2.0 (quantization/config.py: QuantizeConfig).
QuantScheme gptq_scheme(const Config& c) {
  QuantScheme s;
  s.layout = Layout::gptq;
  s.kind = int_kind(c, "bits");
  s.group = checked_group(c, "group_size", c.integer("group_size", kGroup));
  s.zeros = !c.boolean("sym", true);
  s.act_order = c.boolean("desc_act", true);
  const char* key = c.has("checkpoint_format") ? "checkpoint_format" : "format";
  const std::string format = lower_text(c, key, "gptq");
  if (format == "marlin" || c.boolean("is_marlin_format", false)) {
    c.unsupported(c.has(key) ? key : "is_marlin_format",
                  fmt::format("says marlin: that packing is made for one GPU kernel; use the "
                              "checkpoint in the format gptq, or {}",
                              kUsePlain));
  }
  if (format != "gptq" && format != "gptq_v2") {
    c.unsupported(
        key, fmt::format("is {}: gptq and gptq_v2 are read; {}", quote(format, 40), kUsePlain));
  }
  s.zeros_less_one = format == "gptq";
  if (lower_text(c, "pack_dtype", "int32") != "int32") {
    c.unsupported("pack_dtype", "is not int32, the only one that is read");
  }
  check_overrides(c);
  return s;
}

// AutoAWQ 0.2.9 (awq/models/_config.py: AwqConfig); GPTQModel writes the version as the format.
QuantScheme awq_scheme(const Config& c) {
  QuantScheme s;
  s.layout = Layout::awq;
  s.kind = int_kind(c, "bits");
  if (s.kind != Kind::int4) c.unsupported("bits", "is 8: AWQ is read with 4 bits");
  s.group = checked_group(c, "group_size", c.integer("group_size", kGroup));
  s.zeros = true;
  const char* key = c.has("version")             ? "version"
                    : c.has("checkpoint_format") ? "checkpoint_format"
                                                 : "format";
  const std::string version = lower_text(c, key, "gemm");
  if (version != "gemm") {
    c.unsupported(key, fmt::format("is {}: only AWQ's gemm packing is read; {}", quote(version, 40),
                                   kUsePlain));
  }
  if (lower_text(c, "backend", "autoawq") == "llm-awq") {
    c.unsupported("backend",
                  fmt::format("is llm-awq: only AutoAWQ's packing is read; {}", kUsePlain));
  }
  if (!c.boolean("zero_point", true)) {
    c.unsupported("zero_point", "is false: AWQ's gemm packing has zero points");
  }
  check_overrides(c);
  return s;
}

void read_block(QuantScheme& s, const Config& c, std::string_view key) {
  const std::vector<int64_t> block = c.integers(key, {1, 1 << 20});
  if (block.size() != 2) c.refuse(key, "must be two numbers: outputs and inputs of a block");
  s.block_rows = static_cast<int32_t>(block[0]);
  s.group = checked_group(c, key, block[1]);
}

// transformers 4.57.6 (utils/quantization_config.py: FineGrainedFP8Config); without blocks as
// AutoFP8 and AMD Quark write it: a scale for the matrix or for each output.
QuantScheme fp8_scheme(const Config& c) {
  QuantScheme s;
  s.layout = Layout::plain;
  s.kind = Kind::fp8;
  if (c.has("weight_block_size")) read_block(s, c, "weight_block_size");
  if (lower_text(c, "activation_scheme", "dynamic") != "dynamic") {
    s.ignored.emplace_back(
        "input_scale is not used: activations are not rounded as they were calibrated");
  }
  return s;
}

Layout packing_of(const Config& c, std::string_view key) {
  const std::string format = c.text(key);
  if (format == "pack-quantized") return Layout::packed;
  if (format == "int-quantized" || format == "float-quantized" || format == "naive-quantized") {
    return Layout::plain;
  }
  c.unsupported(key, fmt::format("is {}: pack-quantized, int-quantized and float-quantized are "
                                 "read; {}",
                                 quote(format, 40), kUsePlain));
}

// The weights of one group of compressed-tensors (quantization/quant_args.py: QuantizationArgs).
QuantScheme weights_scheme(const Config& w, Layout layout) {
  QuantScheme s;
  s.layout = layout;
  if (lower_text(w, "type", "int") == "float") {
    if (w.integer("num_bits", kBits, 8) != 8 || layout == Layout::packed) {
      w.unsupported("num_bits",
                    fmt::format("of type float must be 8 and not packed; {}", kUsePlain));
    }
    s.kind = Kind::fp8;
  } else {
    s.kind = int_kind(w, "num_bits");
  }
  s.zeros = !w.boolean("symmetric", true);
  if (s.kind == Kind::fp8 && s.zeros) w.unsupported("symmetric", "must be true with type float");
  const auto size = w.nullable_integer("group_size", kGroup);
  const std::string strategy =
      lower_text(w, "strategy", size.value_or(-1) == -1 ? "channel" : "group");
  if (strategy == "group") {
    s.group = checked_group(w, "group_size", size.value_or(0));
  } else if (strategy == "block" && !s.zeros) {
    read_block(s, w, "block_structure");
  } else if (strategy != "channel" && strategy != "tensor") {
    w.unsupported("strategy", fmt::format("is {}: tensor, channel, group and symmetric block are "
                                          "read",
                                          quote(strategy, 40)));
  }
  const std::string order = w.text("actorder", {"group", "dynamic", "weight", "static"}, "");
  s.act_order = order == "group" || order == "dynamic";
  return s;
}

bool same_weights(const QuantScheme& a, const QuantScheme& b) {
  return a.kind == b.kind && a.layout == b.layout && a.group == b.group && a.zeros == b.zeros &&
         a.act_order == b.act_order && a.block_rows == b.block_rows;
}

// What changes the values of weights outside of the tensors that are read.
void check_transforms(const Config& c) {
  if (!c.child_or_empty("transform_config").children("config_groups").empty()) {
    c.unsupported("transform_config", fmt::format("rotates weights or activations; {}", kUsePlain));
  }
  const std::string sparse = c.child_or_empty("sparsity_config").text("format", {}, "dense");
  if (sparse != "dense") {
    c.unsupported("sparsity_config.format", fmt::format("is {}: sparse weights are not read; {}",
                                                        quote(sparse, 40), kUsePlain));
  }
}

// compressed-tensors 0.10.2 and 0.20.0 (quantization/quant_config.py: QuantizationConfig).
QuantScheme compressed_scheme(const Config& c) {
  check_transforms(c);
  std::optional<QuantScheme> all;
  bool inputs = false;
  bool outputs = false;
  for (const auto& [name, group] : c.children("config_groups")) {
    inputs = inputs || group.has("input_activations");
    outputs = outputs || group.has("output_activations");
    if (!group.has("weights")) continue;
    const Layout layout =
        group.has("format") ? packing_of(group, "format") : packing_of(c, "format");
    const QuantScheme s = weights_scheme(group.child("weights"), layout);
    if (all && !same_weights(*all, s)) {
      c.unsupported("config_groups", fmt::format("mix schemes: one for all quantised modules is "
                                                 "read; {}",
                                                 kUsePlain));
    }
    all = s;
  }
  QuantScheme s = all.value_or(QuantScheme{});
  if (inputs) {
    s.ignored.emplace_back(
        "input_activations are not used: activations are not rounded as they were calibrated");
  }
  if (outputs) s.ignored.emplace_back("output_activations are not used: outputs are not quantised");
  return s;
}

[[noreturn]] void refuse_method(const Config& c, std::string_view method) {
  if (method.starts_with("bitsandbytes") || method == "bnb") {
    c.unsupported("quant_method", fmt::format("is bitsandbytes, which is not read: {}", kUsePlain));
  }
  c.unsupported("quant_method", fmt::format("is {}: gptq, awq, fp8 and compressed-tensors are "
                                            "read; {}",
                                            quote(method, 40), kUsePlain));
}

// AutoGPTQ's own file names no method, bitsandbytes' first configs did not either.
std::string method_of(const Config& c) {
  if (c.has("quant_method")) return lower_text(c, "quant_method", "");
  if (c.has("load_in_4bit") || c.has("load_in_8bit")) return "bitsandbytes";
  return c.has("config_groups") || c.has("sparsity_config") ? "compressed-tensors" : "gptq";
}

std::string describe(const QuantScheme& s, const std::string& method) {
  if (s.kind == Kind::none) return method + ", no quantised weights";
  std::string text = method + (s.kind == Kind::fp8    ? ", fp8"
                               : s.kind == Kind::int4 ? ", int4"
                                                      : ", int8");
  if (s.block_rows != 0) {
    text += fmt::format(", blocks of {}x{}", s.block_rows, s.group);
  } else if (s.group != 0) {
    text += fmt::format(", groups of {}", s.group);
  }
  return text + (s.zeros ? ", zero points" : "") + (s.act_order ? ", act-order" : "");
}

QuantScheme scheme_of(const Config& c) {
  const std::string method = method_of(c);
  QuantScheme s;
  if (method == "gptq") {
    s = gptq_scheme(c);
  } else if (method == "awq") {
    s = awq_scheme(c);
  } else if (method == "fp8") {
    s = fp8_scheme(c);
  } else if (method == "compressed-tensors") {
    s = compressed_scheme(c);
  } else {
    refuse_method(c, method);
  }
  s.method = describe(s, method);
  if (c.has("kv_cache_scheme")) {
    s.ignored.emplace_back("kv_cache_scheme is not used: K and V are kept in the compute type");
  }
  return s;
}

}  // namespace

QuantScheme read_quant_scheme(const Config& config) {
  for (const char* key : {"quantization_config", "compression_config"}) {
    if (config.has(key)) return scheme_of(config.child(key));
  }
  const std::string folder = std::filesystem::path(config.file()).parent_path().string();
  const std::string beside = join_path(folder, "quantize_config.json");
  if (!folder.empty() && file_exists(beside)) return scheme_of(Config::read(beside));
  return {};
}

}  // namespace lorry
