// The header of a safetensors file: read without building a JSON document, so that a hostile one
// costs about its own size in memory, and checked in full: the byte ranges of the tensors tile
// the data exactly, each as long as its shape and type say.
#pragma once
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "lorry/tensor.h"

namespace lorry {

struct TensorInfo {
  std::string name;
  std::string_view dtype_name;  // as in the file: "BF16"
  std::optional<Dtype> dtype;   // empty: a type of the format that Tensor does not have
  Shape shape;                  // the first four dimensions; shape.rank stops at 4
  int rank = 0;
  int64_t begin = 0;  // bytes from the start of the data
  int64_t end = 0;
};

struct SafetensorsHeader {
  std::vector<TensorInfo> tensors;  // in the order of their data
  std::map<std::string, std::string> metadata;
};

// `text` is the header alone, `data_bytes` what follows it in the file. Throws Error(bad_file)
// naming `file`, the tensor and what is wrong.
SafetensorsHeader parse_safetensors_header(std::string_view text, int64_t data_bytes,
                                           const std::string& file);

}  // namespace lorry
