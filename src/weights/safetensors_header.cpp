#include "weights/safetensors_header.h"

#include <algorithm>
#include <array>
#include <utility>

#include <boost/json/basic_parser_impl.hpp>

#include "base/checked.h"
#include "base/error.h"

namespace lorry {

namespace {

struct StoredType {
  std::string_view name;
  int bits;
  std::optional<Dtype> dtype;
};

constexpr std::array<StoredType, 24> kStoredTypes{{
    {"F32", 32, Dtype::f32},
    {"F16", 16, Dtype::f16},
    {"BF16", 16, Dtype::bf16},
    {"F8_E4M3", 8, Dtype::f8e4m3},
    {"I8", 8, Dtype::i8},
    {"I32", 32, Dtype::i32},
    {"I64", 64, Dtype::i64},
    {"U8", 8, Dtype::u8},
    {"BOOL", 8, std::nullopt},
    {"F4", 4, std::nullopt},
    {"F6_E2M3", 6, std::nullopt},
    {"F6_E3M2", 6, std::nullopt},
    {"F8_E5M2", 8, std::nullopt},
    {"F8_E8M0", 8, std::nullopt},
    {"F8_E4M3FNUZ", 8, std::nullopt},
    {"F8_E5M2FNUZ", 8, std::nullopt},
    {"I16", 16, std::nullopt},
    {"U16", 16, std::nullopt},
    {"U32", 32, std::nullopt},
    {"U64", 64, std::nullopt},
    {"F64", 64, std::nullopt},
    {"C64", 64, std::nullopt},
    {"C32", 32, std::nullopt},
    {"C128", 128, std::nullopt},
}};

const StoredType* find_stored_type(std::string_view name) {
  const auto* found = std::find_if(kStoredTypes.begin(), kStoredTypes.end(),
                                   [&](const StoredType& t) { return t.name == name; });
  return found == kStoredTypes.end() ? nullptr : found;
}

// Receives the parser's events. {"name": {"dtype": s, "shape": [n...], "data_offsets": [b, e]}}
// and "__metadata__": {s: s} is all that may occur; anything else stops the parser.
class Handler {
 public:
  static constexpr size_t max_object_size = static_cast<size_t>(-1);
  static constexpr size_t max_array_size = static_cast<size_t>(-1);
  static constexpr size_t max_key_size = static_cast<size_t>(-1);
  static constexpr size_t max_string_size = static_cast<size_t>(-1);
  using Ec = boost::json::error_code;
  using Text = boost::json::string_view;

  SafetensorsHeader& header() { return header_; }
  const std::string& refused() const { return refused_; }

  bool on_document_begin(Ec&) { return true; }
  bool on_document_end(Ec&) { return true; }

  bool on_object_begin(Ec& ec) {
    switch (where_) {
      case Where::document:
        where_ = Where::root;
        return true;
      case Where::root:
        return text_ == "__metadata__" ? begin_metadata(ec) : begin_tensor();
      default:
        return refuse("an object where none belongs", ec);
    }
  }
  bool on_object_end(size_t, Ec& ec) {
    if (where_ == Where::tensor && !end_tensor(ec)) return false;
    where_ = where_ == Where::root ? Where::document : Where::root;
    text_.clear();
    return true;
  }
  bool on_array_begin(Ec& ec) {
    if (where_ == Where::tensor && text_ == "shape") {
      where_ = Where::shape;
    } else if (where_ == Where::tensor && text_ == "data_offsets") {
      where_ = Where::offsets;
    } else {
      return refuse("an array where none belongs", ec);
    }
    return true;
  }
  bool on_array_end(size_t n, Ec& ec) {
    if (where_ == Where::offsets && n != 2) return refuse("data_offsets must be two numbers", ec);
    where_ = Where::tensor;
    return true;
  }

  bool on_key_part(Text s, size_t, Ec&) { return collect(s); }
  bool on_key(Text s, size_t, Ec& ec) {
    collect(s);
    partial_ = false;
    return where_ != Where::tensor || begin_field(ec);
  }
  bool on_string_part(Text s, size_t, Ec&) { return collect_value(s); }
  bool on_string(Text s, size_t, Ec& ec) {
    collect_value(s);
    const std::string value = std::exchange(value_, {});
    if (where_ == Where::metadata) {
      if (!header_.metadata.emplace(text_, value).second) {
        return refuse(fmt::format("__metadata__ has the key {} twice", quote(text_)), ec);
      }
      return true;
    }
    if (where_ != Where::tensor || text_ != "dtype") return on_wrong("a string", ec);
    type_ = find_stored_type(value);
    if (type_ == nullptr) {
      return refuse(
          fmt::format("tensor {} has the unknown dtype {}", quote(tensor_.name), quote(value, 40)),
          ec);
    }
    return true;
  }

  bool on_number_part(Text, Ec&) { return true; }
  bool on_int64(int64_t i, Text, Ec& ec) { return on_integer(i, ec); }
  bool on_uint64(uint64_t, Text, Ec& ec) { return on_integer(-1, ec); }
  bool on_double(double, Text, Ec& ec) { return on_wrong("a fraction", ec); }
  bool on_bool(bool, Ec& ec) { return on_wrong("a boolean", ec); }
  bool on_null(Ec& ec) { return on_wrong("null", ec); }
  bool on_comment_part(Text, Ec&) { return true; }
  bool on_comment(Text, Ec&) { return true; }

 private:
  enum class Where { document, root, metadata, tensor, shape, offsets };

  bool refuse(std::string why, Ec& ec) {
    refused_ = std::move(why);
    ec = boost::json::error::extra_data;
    return false;
  }

  bool on_wrong(std::string_view found, Ec& ec) {
    switch (where_) {
      case Where::metadata:
        return refuse(
            fmt::format("__metadata__ key {}: expected a string, found {}", quote(text_), found),
            ec);
      case Where::tensor:
      case Where::shape:
      case Where::offsets:
        return refuse(
            fmt::format("tensor {}: {} cannot be {}", quote(tensor_.name), quote(text_), found),
            ec);
      default:
        return refuse(fmt::format("{}: expected an object, found {}", quote(text_), found), ec);
    }
  }

  // Keys and strings that hold escapes arrive in parts.
  bool collect(Text s) {
    if (!partial_) text_.clear();
    partial_ = true;
    text_.append(s.data(), s.size());
    return true;
  }
  bool collect_value(Text s) {
    value_.append(s.data(), s.size());
    return true;
  }

  bool begin_metadata(Ec& ec) {
    if (std::exchange(has_metadata_, true)) return refuse("__metadata__ occurs twice", ec);
    where_ = Where::metadata;
    return true;
  }

  bool begin_tensor() {
    tensor_ = TensorInfo{};
    tensor_.name = text_;
    type_ = nullptr;
    elements_ = 1;
    n_offsets_ = 0;
    has_dtype_ = has_shape_ = has_offsets_ = false;
    where_ = Where::tensor;
    return true;
  }

  bool begin_field(Ec& ec) {
    bool* seen = text_ == "dtype"          ? &has_dtype_
                 : text_ == "shape"        ? &has_shape_
                 : text_ == "data_offsets" ? &has_offsets_
                                           : nullptr;
    if (seen == nullptr || *seen) {
      return refuse(fmt::format("tensor {}: {} key {}", quote(tensor_.name),
                                seen == nullptr ? "unknown" : "repeated", quote(text_)),
                    ec);
    }
    *seen = true;
    return true;
  }

  bool on_integer(int64_t i, Ec& ec) {
    if (where_ == Where::shape) return add_dimension(i, ec);
    if (where_ != Where::offsets) return on_wrong("a number", ec);
    if (i < 0) return on_wrong("negative or beyond 2^63", ec);
    if (n_offsets_++ == 0) {
      tensor_.begin = i;
    } else {
      tensor_.end = i;
    }
    return true;
  }

  bool add_dimension(int64_t n, Ec& ec) {
    if (n < 0) return on_wrong("negative or beyond 2^63", ec);
    const auto elements = checked_mul(elements_, n);
    if (!elements) {
      return refuse(
          fmt::format("tensor {}: the product of the shape overflows", quote(tensor_.name)), ec);
    }
    elements_ = *elements;
    if (tensor_.rank < 4) tensor_.shape.dim[static_cast<size_t>(tensor_.shape.rank++)] = n;
    ++tensor_.rank;
    return true;
  }

  bool end_tensor(Ec& ec) {
    if (!has_dtype_ || type_ == nullptr || !has_shape_ || !has_offsets_) {
      return refuse(
          fmt::format("tensor {} needs dtype, shape and data_offsets", quote(tensor_.name)), ec);
    }
    const auto bits = checked_mul(elements_, type_->bits);
    if (!bits) {
      return refuse(
          fmt::format("tensor {}: the product of the shape overflows", quote(tensor_.name)), ec);
    }
    if (*bits % 8 != 0) {
      return refuse(fmt::format("tensor {}: {} elements of {} do not fill whole bytes",
                                quote(tensor_.name), elements_, type_->name),
                    ec);
    }
    if (tensor_.begin > tensor_.end || tensor_.end - tensor_.begin != *bits / 8) {
      return refuse(fmt::format("tensor {}: {} elements of {} take {} bytes, but data_offsets are "
                                "[{}, {}]",
                                quote(tensor_.name), elements_, type_->name, *bits / 8,
                                tensor_.begin, tensor_.end),
                    ec);
    }
    tensor_.dtype_name = type_->name;
    tensor_.dtype = type_->dtype;
    header_.tensors.push_back(std::move(tensor_));
    return true;
  }

  SafetensorsHeader header_;
  Where where_ = Where::document;
  std::string refused_;
  std::string text_;      // the last key
  bool partial_ = false;  // text_ waits for its next part
  std::string value_;     // the string being read
  bool has_metadata_ = false;

  TensorInfo tensor_;  // the one being read
  const StoredType* type_ = nullptr;
  int64_t elements_ = 1;
  int n_offsets_ = 0;
  bool has_dtype_ = false;
  bool has_shape_ = false;
  bool has_offsets_ = false;
};

// The ranges, sorted, must follow one another without hole or overlap up to the file's end.
void check_tiling(std::vector<TensorInfo>& tensors, int64_t data_bytes, const std::string& file) {
  std::sort(tensors.begin(), tensors.end(), [](const TensorInfo& a, const TensorInfo& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  int64_t at = 0;
  for (const TensorInfo& t : tensors) {
    if (t.end > data_bytes) {
      fail(Code::bad_file,
           "{}: tensor {} ends at byte {}, but the file holds {} bytes of data: it is truncated "
           "or damaged, fetch it again",
           file, quote(t.name), t.end, data_bytes);
    }
    if (t.begin != at) {
      fail(Code::bad_file, "{}: tensor {} starts at byte {}, expected {}: {}", file, quote(t.name),
           t.begin, at, t.begin < at ? "it overlaps another" : "there is a hole before it");
    }
    at = t.end;
  }
  if (at != data_bytes) {
    fail(Code::bad_file, "{}: the tensors end at byte {}, but the file holds {} bytes of data",
         file, at, data_bytes);
  }
}

}  // namespace

SafetensorsHeader parse_safetensors_header(std::string_view text, int64_t data_bytes,
                                           const std::string& file) {
  if (text.empty() || text.front() != '{') {
    fail(Code::bad_file, "{}: the header does not start with '{{': not a safetensors file", file);
  }
  boost::json::parse_options options;
  options.max_depth = 3;
  boost::json::basic_parser<Handler> parser(options);
  boost::json::error_code ec;
  const size_t n = parser.write_some(false, text.data(), text.size(), ec);
  if (const std::string& why = parser.handler().refused(); !why.empty()) {
    fail(Code::bad_file, "{}: header: {}", file, why);
  }
  if (ec) {
    fail(Code::bad_file, "{}: the header is not valid JSON at byte {}: {}", file, n, ec.message());
  }
  // The parser skips other blanks than spaces too.
  if (text.find_first_not_of(' ', n) != std::string_view::npos ||
      text[text.find_last_not_of(' ')] != '}') {
    fail(Code::bad_file, "{}: the header has bytes after its JSON value", file);
  }
  SafetensorsHeader header = std::move(parser.handler().header());
  check_tiling(header.tensors, data_bytes, file);
  return header;
}

}  // namespace lorry
