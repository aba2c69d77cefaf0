// QuantScheme: how a checkpoint says that its Linears are quantised, from the quantization_config
// of config.json. Which Linears are is not asked here: a module is quantised when the file holds
// quantised tensors of it (weights/quantised.h). A value, free to copy.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "weights/config.h"

namespace lorry {

struct QuantScheme {
  enum class Kind : uint8_t { none, int8, int4, fp8 };
  // gptq: qweight, qzeros, scales, g_idx. awq: qweight, qzeros, scales. plain: a weight of type
  // F8_E4M3 or I8 with weight_scale. packed: weight_packed with weight_scale.
  enum class Layout : uint8_t { none, gptq, awq, plain, packed };

  Kind kind = Kind::none;
  int32_t group = 0;       // inputs that share a scale, a multiple of 32; 0: the whole row
  bool zeros = false;      // each scale has a zero point; otherwise it is 128, 8, or with fp8 none
  bool act_order = false;  // a module may have its inputs sorted by group
  // For people: "gptq, int4, groups of 128, zero points, act-order"; empty for a plain checkpoint.
  std::string method;

  Layout layout = Layout::none;
  bool zeros_less_one = false;       // GPTQ's first format stores zero points minus one
  int32_t block_rows = 0;            // outputs that share a row of scales; 0: none do
  std::vector<std::string> ignored;  // sentences for the debug log: what is there and not used

  int bits() const { return kind == Kind::int4 ? 4 : 8; }
  int64_t n_scales(int64_t in) const { return group == 0 ? 1 : (in + group - 1) / group; }
};

// From quantization_config or compression_config, else from quantize_config.json in the folder of
// config.file(); kind none when there is neither. Throws Error: unsupported, with what to do, for a
// method, format or width that is not read; bad_file for values that are not valid.
QuantScheme read_quant_scheme(const Config& config);

}  // namespace lorry
