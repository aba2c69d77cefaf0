#include "lorry/tensor.h"

#include <span>

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace lorry {

const char* to_string(Dtype t) {
  switch (t) {
    case Dtype::f32:
      return "F32";
    case Dtype::f16:
      return "F16";
    case Dtype::bf16:
      return "BF16";
    case Dtype::f8e4m3:
      return "F8_E4M3";
    case Dtype::i8:
      return "I8";
    case Dtype::i32:
      return "I32";
    case Dtype::i64:
      return "I64";
    case Dtype::u8:
      return "U8";
  }
  return "?";
}

std::string to_string(const Shape& s) {
  return fmt::format("[{}]", fmt::join(std::span(s.dim).first(static_cast<size_t>(s.rank)), ", "));
}

}  // namespace lorry
