#include "weights/unpack.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/error.h"

namespace lorry {

namespace {

static_assert(std::endian::native == std::endian::little,
              "a word's first integer is its first byte");

// Tiles of 64 keep the lines of both sides in the L1 cache.
constexpr int64_t kTile = 64;

// The integers of a word, a byte each, the first one lowest.
template <int kBits>
uint64_t spread(uint32_t word) {
  if constexpr (kBits == 8) return word;
  uint64_t x = word;
  x = (x | (x << 16)) & 0x0000ffff0000ffffU;
  x = (x | (x << 8)) & 0x00ff00ff00ff00ffU;
  return (x | (x << 4)) & 0x0f0f0f0f0f0f0f0fU;
}

// Calls f with the number of bits as a constant.
template <class F>
void with_bits(int bits, F&& f) {
  LORRY_CHECK(bits == 4 || bits == 8, "{}", bits);
  if (bits == 4) return f(std::integral_constant<int, 4>{});
  f(std::integral_constant<int, 8>{});
}

void check_shapes(const Tensor& words, int64_t n_rows, int64_t n_cols) {
  LORRY_CHECK(words.dtype == Dtype::i32 && words.shape[0] == n_rows && words.shape[1] == n_cols,
              "{}, expected [{}, {}]", to_string(words.shape), n_rows, n_cols);
}

}  // namespace

void unpack_rows(const Tensor& dst, const Tensor& words, int bits) {
  const int64_t n = dst.shape[1];
  check_shapes(words, dst.shape[0], packed_words(n, bits));
  with_bits(bits, [&](auto constant) {
    constexpr int kBits = constant;
    constexpr int64_t kPer = 32 / kBits;
    for (int64_t r = 0; r < dst.shape[0]; ++r) {
      const uint32_t* from = words.row<uint32_t>(r);
      uint8_t* to = dst.row<uint8_t>(r);
      for (int64_t c = 0; c < n; c += kPer) {
        const uint64_t values = spread<kBits>(from[c / kPer]);
        std::memcpy(to + c, &values, static_cast<size_t>(std::min(kPer, n - c)));
      }
    }
  });
}

void unpack_columns(const Tensor& dst, const Tensor& words, int bits) {
  check_shapes(words, packed_words(dst.shape[0], bits), dst.shape[1]);
  const int64_t per = 32 / bits;
  const uint32_t mask = (1U << bits) - 1;
  for (int64_t r = 0; r < dst.shape[0]; ++r) {
    const uint32_t* from = words.row<uint32_t>(r / per);
    uint8_t* to = dst.row<uint8_t>(r);
    const auto shift = static_cast<uint32_t>(r % per * bits);
    for (int64_t c = 0; c < dst.shape[1]; ++c) {
      to[c] = static_cast<uint8_t>(from[c] >> shift & mask);
    }
  }
}

void unpack_columns_transposed(const Tensor& dst, const Tensor& words, int bits) {
  const int64_t n_cols = dst.shape[0];
  LORRY_CHECK(dst.shape[1] * bits % 32 == 0, "{}", dst.shape[1]);
  check_shapes(words, packed_words(dst.shape[1], bits), n_cols);
  with_bits(bits, [&](auto constant) {
    constexpr int kBits = constant;
    constexpr int64_t kPer = 32 / kBits;
    for (int64_t c0 = 0; c0 < n_cols; c0 += kTile) {
      const int64_t c1 = std::min(c0 + kTile, n_cols);
      for (int64_t w = 0; w < words.shape[0]; ++w) {
        const uint32_t* from = words.row<uint32_t>(w);
        for (int64_t c = c0; c < c1; ++c) {
          const uint64_t values = spread<kBits>(from[c]);
          std::memcpy(dst.row<uint8_t>(c) + w * kPer, &values, kPer);
        }
      }
    }
  });
}

void unpack_rows_transposed(const Tensor& dst, const Tensor& words, int bits,
                            const WordOrder& order) {
  const int64_t n_rows = dst.shape[1];
  LORRY_CHECK(dst.shape[0] * bits % 32 == 0, "{}", dst.shape[0]);
  check_shapes(words, n_rows, packed_words(dst.shape[0], bits));
  const int64_t per = 32 / bits;
  const uint32_t mask = (1U << bits) - 1;
  for (int64_t r0 = 0; r0 < n_rows; r0 += kTile) {
    const int64_t r1 = std::min(r0 + kTile, n_rows);
    for (int64_t w = 0; w < words.shape[1]; ++w) {
      for (int64_t i = 0; i < per; ++i) {
        uint8_t* to = dst.row<uint8_t>(w * per + order[static_cast<size_t>(i)]);
        for (int64_t r = r0; r < r1; ++r) {
          to[r] = static_cast<uint8_t>(words.row<uint32_t>(r)[w] >> (i * bits) & mask);
        }
      }
    }
  }
}

}  // namespace lorry
