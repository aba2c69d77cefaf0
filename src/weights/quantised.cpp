#include "weights/quantised.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "base/error.h"
#include "weights/slice.h"
#include "weights/unpack.h"

namespace lorry {

namespace {

using Kind = QuantScheme::Kind;
using Layout = QuantScheme::Layout;

// What calibration leaves beside weights. AutoFP8 wrote act_scale before input_scale, and kv_scale;
// AMD Quark writes output_scale; compressed-tensors all others.
constexpr std::array<std::string_view, 9> kNotNeeded{
    ".input_scale", ".act_scale", ".output_scale", ".input_zero_point", ".output_zero_point",
    ".k_scale",     ".v_scale",   ".q_scale",      ".kv_scale"};

// AutoAWQ 0.2.9, modules/linear/gemm.py: WQLinear_GEMM.from_linear, order_map.
constexpr WordOrder kAwqOrder{0, 2, 4, 6, 1, 3, 5, 7};
constexpr WordOrder kInOrder{0, 1, 2, 3, 4, 5, 6, 7};

// Moves the inputs of each row to their place in the packed order.
void sort_inputs(const QuantMatrix& m) {
  if (!m.order) return;
  const int64_t n = m.q.shape[1];
  const auto* order = m.order.row<int32_t>(0);
  std::vector<uint8_t> row(static_cast<size_t>(n));
  for (int64_t r = 0; r < m.q.shape[0]; ++r) {
    auto* q = m.q.row<uint8_t>(r);
    std::copy(q, q + n, row.begin());
    for (int64_t k = 0; k < n; ++k) q[k] = row[static_cast<size_t>(order[k])];
  }
}

void check_whole_words(const std::string& place, std::string_view what, int64_t n, int bits) {
  if (n * bits % 32 != 0) {
    fail(Code::unsupported, "{}: the {} {} of the module do not fill whole 32-bit words of {} bits",
         place, n, what, bits);
  }
}

void check_finite(const Tensor& scale, const std::string& place) {
  for (int64_t r = 0; r < scale.rows(); ++r) {
    const auto* s = scale.row<float>(r);
    for (int64_t c = 0; c < scale.cols(); ++c) {
      if (!std::isfinite(s[c])) {
        fail(Code::bad_file, "{}: the scale of output {}, group {} is {}: the file is damaged",
             place, r, c, s[c]);
      }
    }
  }
}

// dst u8 <- i8 values with their zero at 2^(bits - 1).
void copy_unsigned(const Tensor& dst, const Tensor& src, int bits, const std::string& place) {
  const int middle = 1 << (bits - 1);
  for (int64_t r = 0; r < dst.rows(); ++r) {
    const auto* from = src.row<int8_t>(src.rows() == 1 ? 0 : r);
    auto* to = dst.row<uint8_t>(r);
    for (int64_t c = 0; c < dst.cols(); ++c) {
      const int value = from[src.cols() == 1 ? 0 : c];
      if (value < -middle || value >= middle) {
        fail(Code::bad_file, "{}: value {} is outside of the {} bits that the config names", place,
             value, bits);
      }
      to[c] = static_cast<uint8_t>(value + middle);
    }
  }
}

bool all_bytes_zero(const Tensor& t) {
  const int64_t bytes = t.shape.size() * size_of(t.dtype);
  return std::all_of(t.data, t.data + bytes, [](std::byte b) { return b == std::byte{0}; });
}

// The shape of a matrix's one scale, or of one for each output; other shapes give the latter.
Shape row_scales_shape(const TensorInfo* info, int64_t out) {
  if (info != nullptr && info->rank <= 2 && info->shape.size() == 1) return info->shape;
  if (info != nullptr && info->rank == 1) return {out};
  return {out, 1};
}

}  // namespace

QuantReader::QuantReader(Checkpoint& checkpoint, QuantScheme scheme)
    : checkpoint_(checkpoint), scheme_(std::move(scheme)) {
  if (scheme_.method.empty()) return;
  for (const std::string_view ending : kNotNeeded) checkpoint_.dismiss_ending(ending);
}

bool QuantReader::has(std::string_view module) const {
  const std::string name(module);
  switch (scheme_.layout) {
    case Layout::none:
      return false;
    case Layout::gptq:
    case Layout::awq:
      return checkpoint_.has(name + ".qweight");
    case Layout::packed:
      return checkpoint_.has(name + ".weight_packed");
    case Layout::plain:
      break;
  }
  const TensorInfo* weight = checkpoint_.find(name + ".weight");
  return weight != nullptr && size_of(weight->dtype.value_or(Dtype::u8)) == 1;
}

QuantMatrix QuantReader::read(const std::string& module, int64_t out, int64_t in) {
  LORRY_CHECK(has(module), "{}", module);
  const Size size{out, in};
  dismiss_bias(module + ".bias", out);
  switch (scheme_.layout) {
    case Layout::gptq:
      return read_gptq(module, size);
    case Layout::awq:
      return read_awq(module, size);
    case Layout::packed:
      return read_packed(module, size);
    default:
      return read_plain(module, size);
  }
}

QuantMatrix QuantReader::matrix(Size size, const std::vector<int32_t>& order) const {
  QuantMatrix m;
  m.kind = scheme_.kind;
  m.group = scheme_.group;
  const Shape q{size.out, size.in};
  const Shape scale{size.out, scheme_.n_scales(size.in)};
  const size_t q_bytes = Arena::tensor_bytes(Dtype::u8, q);
  const size_t scale_bytes = Arena::tensor_bytes(Dtype::f32, scale);
  const size_t zero_bytes = Arena::tensor_bytes(Dtype::u8, scale);
  m.memory =
      Buffer(q_bytes + scale_bytes + zero_bytes + Arena::tensor_bytes(Dtype::i32, {size.in}));
  std::byte* at = m.memory.data();
  m.q = view(at, Dtype::u8, q);
  m.scale = view(at += q_bytes, Dtype::f32, scale);
  at += scale_bytes;
  if (scheme_.zeros) m.zero = view(at, Dtype::u8, scale);
  at += zero_bytes;
  if (!order.empty()) {
    m.order = view(at, Dtype::i32, {size.in});
    std::copy(order.begin(), order.end(), m.order.row<int32_t>(0));
  }
  return m;
}

// g_idx [in] names the group of each input; the answer sorts the inputs by it and is empty where
// they are sorted. Uninitialised ones (-1) of compressed-tensors 0.10.2 mean no order
// (quantization/lifecycle/forward.py: _process_quantization).
std::vector<int32_t> QuantReader::read_order(const std::string& module, Size size) {
  const std::string name = module + (scheme_.layout == Layout::gptq ? ".g_idx" : ".weight_g_idx");
  const bool required = scheme_.layout == Layout::gptq && scheme_.act_order;
  if (!required && !checkpoint_.has(name)) return {};
  const Tensor g_idx = checkpoint_.tensor(name, {Dtype::i32, Dtype::i64}, {size.in});
  const auto group_of = [&](int64_t k) {
    return g_idx.dtype == Dtype::i32 ? g_idx.row<int32_t>(0)[k] : g_idx.row<int64_t>(0)[k];
  };
  const int64_t n = scheme_.n_scales(size.in);
  const int64_t group = scheme_.group == 0 ? size.in : scheme_.group;
  std::vector<int64_t> counts(static_cast<size_t>(n));
  bool sorted = true;
  std::vector<int32_t> order(static_cast<size_t>(size.in));
  for (int64_t k = 0; k < size.in; ++k) {
    const int64_t g = group_of(k);
    if (g == -1 && scheme_.layout == Layout::packed) return {};
    if (g < 0 || g >= n) {
      fail(Code::bad_file, "{}: input {} is in group {}, expected 0 to {}", checkpoint_.place(name),
           k, g, n - 1);
    }
    const int64_t at = counts[static_cast<size_t>(g)]++;
    if (at >= std::min(group, size.in - g * group)) {
      fail(Code::bad_file, "{}: group {} has more inputs than the {} that the config names",
           checkpoint_.place(name), g, group);
    }
    order[static_cast<size_t>(g * group + at)] = static_cast<int32_t>(k);
    sorted = sorted && g * group + at == k;
  }
  if (sorted) return {};
  if (!scheme_.act_order) {
    fail(Code::bad_file,
         "{}: the inputs are not in the order of their groups, but the quantization_config says no "
         "act-order: set desc_act (compressed-tensors: actorder) as the checkpoint was made",
         checkpoint_.place(name));
  }
  return order;
}

// AutoGPTQ 0.7.1, nn_modules/qlinear/qlinear_cuda.py, and GPTQModel 2.2.0,
// nn_modules/qlinear/__init__.py: pack. qweight packs inputs, qzeros outputs.
QuantMatrix QuantReader::read_gptq(const std::string& module, Size size) {
  const int bits = scheme_.bits();
  const std::string name = module + ".qweight";
  check_whole_words(checkpoint_.place(name), "inputs", size.in, bits);
  check_whole_words(checkpoint_.place(name), "outputs", size.out, bits);
  QuantMatrix m = matrix(size, read_order(module, size));
  unpack_columns_transposed(
      m.q, checkpoint_.tensor(name, {Dtype::i32}, {packed_words(size.in, bits), size.out}), bits);
  sort_inputs(m);
  read_gptq_zeros(m, module + ".qzeros");
  const std::string scales = module + ".scales";
  copy_transposed(m.scale, checkpoint_.tensor(scales, {scheme_.n_scales(size.in), size.out}));
  check_finite(m.scale, checkpoint_.place(scales));
  return m;
}

// The first format stores zero points minus one, subtracted from whole words: a zero point of 0
// borrows from the next one (gptqmodel/utils/model.py: convert_gptq_v2_to_v1_format_module).
void QuantReader::read_gptq_zeros(const QuantMatrix& m, const std::string& name) {
  const int bits = scheme_.bits();
  const int64_t out = m.scale.shape[0];
  const int64_t n = m.scale.shape[1];
  const Shape shape{n, packed_words(out, bits)};
  const Tensor stored = checkpoint_.tensor(name, {Dtype::i32}, shape);
  std::vector<uint32_t> words(static_cast<size_t>(shape.size()));
  const uint32_t ones = bits == 4 ? 0x11111111U : 0x01010101U;
  std::transform(stored.row<uint32_t>(0), stored.row<uint32_t>(0) + words.size(), words.begin(),
                 [&](uint32_t w) { return scheme_.zeros_less_one ? w + ones : w; });
  std::vector<uint8_t> zeros(static_cast<size_t>(out * n));
  const Tensor all = view(zeros.data(), Dtype::u8, {out, n});
  unpack_rows_transposed(all, view(words.data(), Dtype::i32, shape), bits, kInOrder);
  if (scheme_.zeros) return copy(m.zero, all);
  const int middle = 1 << (bits - 1);
  const auto other = std::find_if(zeros.begin(), zeros.end(), [&](int z) { return z != middle; });
  if (other != zeros.end()) {
    fail(Code::bad_file,
         "{}: a zero point is {}, but the quantization_config says symmetric, which is {}: "
         "correct sym, or checkpoint_format (gptq stores zero points minus one, gptq_v2 does not)",
         checkpoint_.place(name), *other, middle);
  }
}

// AutoAWQ 0.2.9, modules/linear/gemm.py: WQLinear_GEMM.from_linear. Both pack outputs.
QuantMatrix QuantReader::read_awq(const std::string& module, Size size) {
  const int bits = scheme_.bits();
  const int64_t n = scheme_.n_scales(size.in);
  const int64_t words = packed_words(size.out, bits);
  const std::string name = module + ".qweight";
  check_whole_words(checkpoint_.place(name), "outputs", size.out, bits);
  QuantMatrix m = matrix(size, {});
  unpack_rows_transposed(m.q, checkpoint_.tensor(name, {Dtype::i32}, {size.in, words}), bits,
                         kAwqOrder);
  unpack_rows_transposed(m.zero, checkpoint_.tensor(module + ".qzeros", {Dtype::i32}, {n, words}),
                         bits, kAwqOrder);
  const std::string scales = module + ".scales";
  copy_transposed(m.scale, checkpoint_.tensor(scales, {n, size.out}));
  check_finite(m.scale, checkpoint_.place(scales));
  return m;
}

// compressed-tensors, compressors/naive_quantized; transformers, integrations/finegrained_fp8.py:
// FP8Linear, whose weight_scale_inv multiplies as weight_scale does.
QuantMatrix QuantReader::read_plain(const std::string& module, Size size) {
  const std::string name = module + ".weight";
  const Shape shape{size.out, size.in};
  QuantMatrix m = matrix(size, read_order(module, size));
  if (scheme_.kind == Kind::fp8) {
    Tensor bytes = checkpoint_.tensor(name, {Dtype::f8e4m3}, shape);
    bytes.dtype = Dtype::u8;
    copy(m.q, bytes);
  } else {
    copy_unsigned(m.q, checkpoint_.tensor(name, {Dtype::i8}, shape), scheme_.bits(),
                  checkpoint_.place(name));
  }
  sort_inputs(m);
  const std::string inverse = module + ".weight_scale_inv";
  read_scales(m, checkpoint_.has(inverse) ? inverse : module + ".weight_scale");
  read_plain_zeros(m, module + ".weight_zero_point", false);
  return m;
}

std::vector<int32_t> QuantReader::order(const std::string& module, int64_t in) {
  return read_order(module, {0, in});
}

// compressed-tensors, compressors/pack_quantized: PackedQuantizationCompressor.compress and
// pack_to_int32. Weights are packed along inputs, zero points along outputs.
QuantMatrix QuantReader::read_packed(const std::string& module, Size size) {
  const int bits = scheme_.bits();
  check_weight_shape(module + ".weight_shape", size);
  QuantMatrix m = matrix(size, read_order(module, size));
  unpack_rows(m.q,
              checkpoint_.tensor(module + ".weight_packed", {Dtype::i32},
                                 {size.out, packed_words(size.in, bits)}),
              bits);
  sort_inputs(m);
  read_scales(m, module + ".weight_scale");
  read_plain_zeros(m, module + ".weight_zero_point", true);
  return m;
}

void QuantReader::read_scales(const QuantMatrix& m, const std::string& name) {
  const int64_t out = m.scale.shape[0];
  const int64_t n = m.scale.shape[1];
  const int64_t block = scheme_.block_rows;
  Shape shape = m.scale.shape;
  if (block != 0) {
    shape = {(out + block - 1) / block, n};
  } else if (scheme_.group == 0) {
    shape = row_scales_shape(checkpoint_.find(name), out);
  }
  const Tensor src = checkpoint_.tensor(name, shape);
  const Tensor matrix = view(src.data, src.dtype, {shape.size() / n, n});
  const int64_t rows_per_row = block != 0 ? block : matrix.shape[0] == 1 ? out : 1;
  for (int64_t r = 0; r < out; r += rows_per_row) {
    const int64_t end = std::min(out, r + rows_per_row);
    for (int64_t i = r; i < end; ++i) copy(rows(m.scale, i, 1), rows(matrix, r / rows_per_row, 1));
  }
  check_finite(m.scale, checkpoint_.place(name));
}

// Zero points as they are, beside the scales, or packed; compressed-tensors before 0.9 packed only
// weights. Symmetric checkpoints may hold zeros.
void QuantReader::read_plain_zeros(const QuantMatrix& m, const std::string& name, bool packed) {
  const TensorInfo* info = checkpoint_.find(name);
  if (!scheme_.zeros) {
    if (info == nullptr) return;
    const Tensor zeros = checkpoint_.tensor(
        name, {Dtype::i8, Dtype::i32, Dtype::f8e4m3, Dtype::f32, Dtype::f16, Dtype::bf16},
        info->shape);
    if (all_bytes_zero(zeros)) return;
    fail(Code::bad_file, "{}: zero points, but the quantization_config says symmetric",
         checkpoint_.place(name));
  }
  const int64_t out = m.zero.shape[0];
  const int64_t n = m.zero.shape[1];
  if (packed && !(info != nullptr && info->dtype == Dtype::i8)) {
    unpack_columns(m.zero,
                   checkpoint_.tensor(name, {Dtype::i32}, {packed_words(out, scheme_.bits()), n}),
                   scheme_.bits());
    return;
  }
  const Shape shape = scheme_.group == 0 ? row_scales_shape(info, out) : m.zero.shape;
  const Tensor src = checkpoint_.tensor(name, {Dtype::i8}, shape);
  copy_unsigned(m.zero, view(src.data, src.dtype, {shape.size() / n, n}), scheme_.bits(),
                checkpoint_.place(name));
}

void QuantReader::check_weight_shape(const std::string& name, Size size) {
  if (!checkpoint_.has(name)) return;
  const Tensor t = checkpoint_.tensor(name, {Dtype::i64, Dtype::i32}, {2});
  const bool wide = t.dtype == Dtype::i64;
  const int64_t out = wide ? t.row<int64_t>(0)[0] : t.row<int32_t>(0)[0];
  const int64_t in = wide ? t.row<int64_t>(0)[1] : t.row<int32_t>(0)[1];
  if (out != size.out || in != size.in) {
    fail(Code::bad_file, "{}: expected shape [{}, {}], found [{}, {}]", checkpoint_.place(name),
         size.out, size.in, out, in);
  }
}

// AutoGPTQ before 0.5 wrote one of zeros for each module.
void QuantReader::dismiss_bias(const std::string& name, int64_t out) {
  if (!checkpoint_.has(name)) return;
  const Tensor bias = checkpoint_.tensor(name, {out});
  std::vector<float> values(static_cast<size_t>(out));
  copy(view(values.data(), Dtype::f32, {out}), bias);
  if (std::any_of(values.begin(), values.end(), [](float v) { return v != 0; })) {
    fail(Code::bad_file, "{}: the module has a bias, which this model has none of",
         checkpoint_.place(name));
  }
}

}  // namespace lorry
