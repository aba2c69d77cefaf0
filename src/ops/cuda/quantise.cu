// Rows of x as s8 for linears with int8 and int4 weights: the CPU's bits.
#include "ops/cuda/kernels.h"
#include "ops/cuda/launch.h"
#include "ops/cuda/numbers.h"

namespace lorry::cuda {

namespace {

constexpr int kRowThreads = 512;

// Denormals of bf16 are taken as zero.
template <class T>
LORRY_DEVICE float value_of(uint16_t x) {
  return kIsBf16<T> && (x & 0x7f80U) == 0 ? 0.0F : T::from(x);
}

// The larger of each half: of numbers without signs, where NaN wins.
LORRY_DEVICE uint32_t larger_halves(uint32_t a, uint32_t b) {
#ifdef __CUDACC__
  return __vmaxu2(a, b);
#else
  const uint32_t low = (a & 0xffffU) > (b & 0xffffU) ? a : b;
  const uint32_t high = a > b ? a : b;
  return (low & 0xffffU) | (high & 0xffff0000U);
#endif
}
constexpr uint32_t kSizes = 0x7fff7fffU;  // of two numbers, without their signs

// What a row is multiplied by, and what by to have it back.
struct Factor {
  float factor, scale;
  bool finite;
  bool plain;  // no product is beyond 127, and denormals come to 0 by themselves
};

// sizes: the largest of the thread's values in each half.
template <class T>
LORRY_DEVICE Factor factor_of(uint32_t sizes, float* shared) {
  auto* most_of = reinterpret_cast<uint32_t*>(shared);
  const uint32_t own = warp_max(sizes >> 16 > (sizes & 0xffffU) ? sizes >> 16 : sizes & 0xffffU);
  if (lane_index() == 0) most_of[warp_index()] = own;
  sync_threads();
  const uint32_t all = warp_max(lane_index() < kRowThreads / 32 ? most_of[lane_index()] : 0U);
  const float most = value_of<T>(static_cast<uint16_t>(all));
  Factor f{};
  f.finite = all < T::kInfinity;
  f.factor = f.finite && most > 0 ? 127.0F / most : 0.0F;
  f.scale = f.finite ? most / 127.0F : NAN;
  f.plain = f.finite && most > 0x1p-100F;
  return f;
}

LORRY_DEVICE int quantise(float x, float factor) {
  const float q = rintf(x * factor);
  if (x == 0.0F) return 0;
  return static_cast<int>(q > 127.0F ? 127.0F : q < -127.0F ? -127.0F : q);
}

// A block a row: xq, scale = max|x| / 127 (NaN where x is not finite) and the sums of xq over the
// inputs of each scale.
template <class T>
LORRY_KERNEL(kRowThreads)
quantise_kernel(QuantArgs q) {
  begin_kernel();
  const LinearArgs& a = q.linear;
  float* shared = reinterpret_cast<float*>(shared_bytes());
  const auto row = static_cast<int32_t>(blockIdx.x);
  const uint16_t* x = static_cast<const uint16_t*>(a.x) + row * a.x_pitch;
  const int32_t* order = nullptr;
  if (a.order != nullptr) {
    int32_t group = 0;
    while (a.begin != nullptr && a.begin[group + 1] <= row) ++group;
    order = a.order + int64_t{group} * a.plan.in;
  }
  uint32_t sizes = 0;
  for (int k = static_cast<int>(threadIdx.x); k < a.plan.in; k += kRowThreads) {
    sizes = larger_halves(sizes, x[k] & kSizes);
  }
  const Factor f = factor_of<T>(sizes, shared);
  const auto packed = [&](int k) {
    if (!f.finite || k >= a.plan.in) return 0;
    return quantise(value_of<T>(x[order == nullptr ? k : order[k]]), f.factor);
  };
  const auto padded = static_cast<int>(quantised_pitch(a.plan));
  int8_t* to = q.xq + int64_t{row} * padded;
  for (int k = static_cast<int>(threadIdx.x); k < padded; k += kRowThreads) {
    to[place_in_xq(k, q.wide)] = static_cast<int8_t>(packed(k));
  }
  if (threadIdx.x == 0) q.scale[row] = f.scale;
  if (!a.plan.zeros) return;
  for (int u = warp_index(); u < a.plan.scales; u += kRowThreads / 32) {
    const int end = (u + 1) * a.plan.group < a.plan.in ? (u + 1) * a.plan.group : a.plan.in;
    int sum = 0;
    for (int k = u * a.plan.group + lane_index(); k < end; k += 32) sum += packed(k);
    sum = warp_sum(sum);
    if (lane_index() == 0) q.sums[int64_t{u} * a.rows + row] = sum;
  }
}

// The same for rows without an order, of whole pieces of 8 inputs that all lie in one scale: a
// thread keeps what it has of the row in registers.
constexpr int kPiece = 8;
constexpr int kPieces = 4;  // of a thread, at most

// Two values; the sum of what they come to is added.
template <class T>
LORRY_DEVICE uint32_t quantise_pair(uint32_t pair, const Factor& f, int& sum) {
  int low, high;
  if (f.plain) {
    // Added to 1.5 2^23 a number is rounded to an integer, as rintf does it, in the low bits.
    constexpr float kRound = 12582912.0F;
    low = static_cast<int>(as_bits(T::low(pair) * f.factor + kRound) - as_bits(kRound));
    high = static_cast<int>(as_bits(T::high(pair) * f.factor + kRound) - as_bits(kRound));
  } else {
    low = quantise(value_of<T>(static_cast<uint16_t>(pair)), f.factor);
    high = quantise(value_of<T>(static_cast<uint16_t>(pair >> 16)), f.factor);
  }
  sum += low + high;
  return (static_cast<uint32_t>(low) & 0xffU) | (static_cast<uint32_t>(high) & 0xffU) << 8;
}

template <class T>
LORRY_DEVICE Word2 quantise_piece(const Word4& x, const Factor& f, int& sum) {
  if (!f.finite) return {0, 0};
  const uint32_t low = quantise_pair<T>(x.x, f, sum) | quantise_pair<T>(x.y, f, sum) << 16;
  const uint32_t high = quantise_pair<T>(x.z, f, sum) | quantise_pair<T>(x.w, f, sum) << 16;
  return {low, high};
}

LORRY_DEVICE void put_piece(int8_t* row, int piece, const Word2& x, bool wide) {
  int8_t* to = row + place_in_xq(piece * kPiece, wide);
  if (wide) {
    *reinterpret_cast<uint32_t*>(to) = x.x;
    *reinterpret_cast<uint32_t*>(to + 16) = x.y;
  } else {
    *reinterpret_cast<Word2*>(to) = x;
  }
}

// The sum of all threads, for thread 0.
LORRY_DEVICE int block_total(int x, float* shared) {
  x = warp_sum(x);
  auto* sums = reinterpret_cast<int*>(shared) + kRowThreads / 32;
  if (lane_index() == 0) sums[warp_index()] = x;
  sync_threads();
  int total = 0;
  for (int w = 0; w < kRowThreads / 32; ++w) total += sums[w];
  return total;
}

template <class T>
LORRY_KERNEL(kRowThreads)
quantise_pieces_kernel(QuantArgs q) {
  begin_kernel();
  const LinearArgs& a = q.linear;
  float* shared = reinterpret_cast<float*>(shared_bytes());
  const auto row = static_cast<int32_t>(blockIdx.x);
  const auto* x =
      reinterpret_cast<const Word4*>(static_cast<const uint16_t*>(a.x) + row * a.x_pitch);
  const int pieces = a.plan.in / kPiece;
  const auto padded = static_cast<int>(quantised_pitch(a.plan) / kPiece);
  Word4 held[kPieces];
  LORRY_UNROLL
  for (int i = 0; i < kPieces; ++i) {
    const int p = i * kRowThreads + static_cast<int>(threadIdx.x);
    held[i] = p < pieces ? x[p] : Word4{0, 0, 0, 0};
  }
  uint32_t sizes = 0;
  LORRY_UNROLL
  for (int i = 0; i < kPieces; ++i) {
    sizes = larger_halves(sizes, larger_halves(held[i].x & kSizes, held[i].y & kSizes));
    sizes = larger_halves(sizes, larger_halves(held[i].z & kSizes, held[i].w & kSizes));
  }
  const Factor f = factor_of<T>(sizes, shared);
  if (threadIdx.x == 0) q.scale[row] = f.scale;
  int8_t* to = q.xq + int64_t{row} * padded * kPiece;
  const int together = a.plan.group / kPiece;  // lanes of one scale, where there are several
  const bool sums = a.plan.zeros && a.plan.scales > 1;
  int all = 0;
  LORRY_UNROLL
  for (int i = 0; i < kPieces; ++i) {
    const int p = i * kRowThreads + static_cast<int>(threadIdx.x);
    if (i * kRowThreads >= padded) break;
    int sum = 0;
    const Word2 out = quantise_piece<T>(held[i], f, sum);
    if (p < padded) put_piece(to, p, out, q.wide);
    all += sum;
    if (!sums) continue;
    for (int mask = together / 2; mask > 0; mask >>= 1) sum += shuffle_xor(sum, mask);
    if (lane_index() % together == 0 && p < pieces) {
      q.sums[int64_t{p / together} * a.rows + row] = sum;
    }
  }
  if (!a.plan.zeros || sums) return;
  all = block_total(all, shared);
  if (threadIdx.x == 0) q.sums[row] = all;
}

bool in_pieces(const LinearArgs& a) {
  const bool fits = !a.plan.zeros || a.plan.scales == 1 || a.plan.group == 32 ||
                    a.plan.group == 64 || a.plan.group == 128 || a.plan.group == 256;
  return fits && a.order == nullptr && a.plan.in % kPiece == 0 && a.x_pitch % kPiece == 0 &&
         reinterpret_cast<uintptr_t>(a.x) % 16 == 0 &&
         quantised_pitch(a.plan) <= kPieces * kRowThreads * kPiece;
}

}  // namespace

void quantise_rows(Stream s, const QuantArgs& q) {
  constexpr size_t kShared = 2 * (kRowThreads / 32) * sizeof(float);
  with_16_bits(q.linear.act, [&](auto x) {
    using T = decltype(x);
    in_pieces(q.linear) ? start<QuantArgs, quantise_pieces_kernel<T>>("quantise", {q.linear.rows},
                                                                      kRowThreads, kShared, s, q)
                        : start<QuantArgs, quantise_kernel<T>>("quantise", {q.linear.rows},
                                                               kRowThreads, kShared, s, q);
  });
}

}  // namespace lorry::cuda
