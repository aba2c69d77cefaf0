#include "weights/slice.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "base/error.h"
#include "base/float16.h"

namespace lorry {

namespace {

float widen(float x) { return x; }
float widen(bf16 x) { return to_float(x); }
float widen(f16 x) { return to_float(x); }

template <class To, class From>
To convert(From x) {
  if constexpr (std::is_same_v<To, From>) {
    return x;
  } else if constexpr (std::is_same_v<To, float>) {
    return widen(x);
  } else if constexpr (std::is_same_v<To, bf16>) {
    return to_bf16(widen(x));
  } else {
    return to_f16(widen(x));
  }
}

// Calls f with a value of the C++ type of a float dtype.
template <class F>
void with_float_type(Dtype dtype, F&& f) {
  switch (dtype) {
    case Dtype::f32:
      return f(float{});
    case Dtype::bf16:
      return f(bf16{});
    case Dtype::f16:
      return f(f16{});
    default:
      LORRY_CHECK(false, "{} is not converted", to_string(dtype));
  }
}

// Calls f with unsigned integers as wide as an element, which moves any type bit by bit.
template <class F>
void with_width(Dtype dtype, F&& f) {
  switch (size_of(dtype)) {
    case 1:
      return f(uint8_t{});
    case 2:
      return f(uint16_t{});
    case 4:
      return f(uint32_t{});
    default:
      return f(uint64_t{});
  }
}

template <class To, class From>
void copy_rows(const Tensor& dst, const Tensor& src) {
  for (int64_t r = 0; r < src.rows(); ++r) {
    const From* from = src.row<From>(r);
    To* to = dst.row<To>(r);
    for (int64_t c = 0; c < src.cols(); ++c) to[c] = convert<To>(from[c]);
  }
}

template <class To, class From>
void transpose(const Tensor& dst, const Tensor& src) {
  // Tiles keep the lines of both sides in the L1 cache.
  constexpr int64_t kTile = 32;
  const int64_t n_rows = src.rows();
  const int64_t n_cols = src.cols();
  for (int64_t r0 = 0; r0 < n_rows; r0 += kTile) {
    const int64_t r1 = std::min(r0 + kTile, n_rows);
    for (int64_t c0 = 0; c0 < n_cols; c0 += kTile) {
      for (int64_t c = c0; c < std::min(c0 + kTile, n_cols); ++c) {
        To* to = dst.row<To>(c);
        for (int64_t r = r0; r < r1; ++r) to[r] = convert<To>(src.row<From>(r)[c]);
      }
    }
  }
}

void check_cpu(const Tensor& dst, const Tensor& src) {
  LORRY_CHECK(dst.device == Device::cpu && src.device == Device::cpu);
}

}  // namespace

void copy(const Tensor& dst, const Tensor& src) {
  check_cpu(dst, src);
  LORRY_CHECK(dst.rows() == src.rows() && dst.cols() == src.cols(), "{} from {}",
              to_string(dst.shape), to_string(src.shape));
  if (dst.dtype == src.dtype) {
    const auto row_bytes = static_cast<size_t>(src.cols() * size_of(src.dtype));
    if (row_bytes == 0) return;
    for (int64_t r = 0; r < src.rows(); ++r) {
      std::memcpy(dst.data + r * dst.pitch * size_of(dst.dtype),
                  src.data + r * src.pitch * size_of(src.dtype), row_bytes);
    }
    return;
  }
  with_float_type(dst.dtype, [&](auto to) {
    with_float_type(src.dtype,
                    [&](auto from) { copy_rows<decltype(to), decltype(from)>(dst, src); });
  });
}

void copy_transposed(const Tensor& dst, const Tensor& src) {
  check_cpu(dst, src);
  LORRY_CHECK(dst.rows() == src.cols() && dst.cols() == src.rows(), "{} from {} transposed",
              to_string(dst.shape), to_string(src.shape));
  if (dst.dtype == src.dtype) {
    return with_width(dst.dtype, [&](auto t) { transpose<decltype(t), decltype(t)>(dst, src); });
  }
  with_float_type(dst.dtype, [&](auto to) {
    with_float_type(src.dtype,
                    [&](auto from) { transpose<decltype(to), decltype(from)>(dst, src); });
  });
}

}  // namespace lorry
