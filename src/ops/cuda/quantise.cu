// Rows of x as s8 for linears with int8 and int4 weights: the CPU's bits.
#include "ops/cuda/kernels.h"
#include "ops/cuda/launch.h"

namespace lorry::cuda {

namespace {

constexpr int kRowThreads = 256;

// bf16 with denormals taken as zero.
LORRY_DEVICE float value_of(uint16_t x) { return (x & 0x7f80U) == 0 ? 0.0F : from_bf16(x); }

// NaN wins.
LORRY_DEVICE float block_max(float x, float* shared) {
  x = warp_max(x);
  if (lane_index() == 0) shared[warp_index()] = x;
  sync_threads();
  float most = shared[0];
  for (int w = 1; w < kRowThreads / 32; ++w) {
    most = shared[w] > most || shared[w] != shared[w] ? shared[w] : most;
  }
  return most;
}

LORRY_DEVICE int quantise(float x, float factor) {
  const float q = rintf(x * factor);
  if (x == 0.0F) return 0;
  return static_cast<int>(q > 127.0F ? 127.0F : q < -127.0F ? -127.0F : q);
}

// A block a row: xq, scale = max|x| / 127 (NaN where x is not finite) and the sums of xq over the
// inputs of each scale.
LORRY_KERNEL(kRowThreads) quantise_kernel(QuantArgs q) {
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
  float most = 0;
  for (int k = static_cast<int>(threadIdx.x); k < a.plan.in; k += kRowThreads) {
    const float size = fabsf(value_of(x[k]));
    most = size > most || size != size ? size : most;
  }
  most = block_max(most, shared);
  const bool finite = most < INFINITY;
  const float factor = finite && most > 0 ? 127.0F / most : 0.0F;
  const auto packed = [&](int k) {
    if (!finite || k >= a.plan.in) return 0;
    return quantise(value_of(x[order == nullptr ? k : order[k]]), factor);
  };
  const auto padded = static_cast<int>(a.plan.chunks()) * kChunk;
  int8_t* to = q.xq + int64_t{row} * padded;
  for (int k = static_cast<int>(threadIdx.x); k < padded; k += kRowThreads) {
    to[k] = static_cast<int8_t>(packed(k));
  }
  for (int u = warp_index(); u < a.plan.scales; u += kRowThreads / 32) {
    const int end = (u + 1) * a.plan.group < a.plan.in ? (u + 1) * a.plan.group : a.plan.in;
    int sum = 0;
    for (int k = u * a.plan.group + lane_index(); k < end; k += 32) sum += packed(k);
    sum = warp_sum(sum);
    if (lane_index() == 0) q.sums[int64_t{row} * a.plan.scales + u] = sum;
  }
  if (threadIdx.x == 0) q.scale[row] = finite ? most / 127.0F : NAN;
}

// The same for rows without an order, of whole pieces of 8 inputs that all lie in one scale: a
// thread keeps what it has of the row in registers.
constexpr int kPiece = 8;
constexpr int kPieces = 8;  // of a thread, at most

LORRY_DEVICE uint32_t quantise_word(uint32_t low, uint32_t high, float factor, int& sum) {
  const uint32_t pair[2] = {low, high};
  uint32_t word = 0;
  LORRY_UNROLL
  for (int i = 0; i < 4; ++i) {
    const auto bits = static_cast<uint16_t>(pair[i / 2] >> (i % 2 * 16));
    const int q = quantise(value_of(bits), factor);
    sum += q;
    word |= (static_cast<uint32_t>(q) & 0xffU) << (8 * i);
  }
  return word;
}

LORRY_DEVICE float largest_of(const Word4& w) {
  const uint32_t words[4] = {w.x, w.y, w.z, w.w};
  float most = 0;
  LORRY_UNROLL
  for (int i = 0; i < 8; ++i) {
    const float size = fabsf(value_of(static_cast<uint16_t>(words[i / 2] >> (i % 2 * 16))));
    most = size > most || size != size ? size : most;
  }
  return most;
}

LORRY_KERNEL(kRowThreads) quantise_pieces_kernel(QuantArgs q) {
  begin_kernel();
  const LinearArgs& a = q.linear;
  float* shared = reinterpret_cast<float*>(shared_bytes());
  const auto row = static_cast<int32_t>(blockIdx.x);
  const auto* x =
      reinterpret_cast<const Word4*>(static_cast<const uint16_t*>(a.x) + row * a.x_pitch);
  const int pieces = a.plan.in / kPiece;
  const auto padded = static_cast<int>(a.plan.chunks()) * (kChunk / kPiece);
  Word4 held[kPieces];
  float most = 0;
  LORRY_UNROLL
  for (int i = 0; i < kPieces; ++i) {
    const int p = i * kRowThreads + static_cast<int>(threadIdx.x);
    held[i] = p < pieces ? x[p] : Word4{0, 0, 0, 0};
  }
  LORRY_UNROLL
  for (int i = 0; i < kPieces; ++i) {
    const float size = largest_of(held[i]);
    most = size > most || size != size ? size : most;
  }
  most = block_max(most, shared);
  const bool finite = most < INFINITY;
  const float factor = finite && most > 0 ? 127.0F / most : 0.0F;
  const int together = a.plan.scales == 1 ? 32 : a.plan.group / kPiece;  // lanes of one scale
  int all = 0;
  LORRY_UNROLL
  for (int i = 0; i < kPieces; ++i) {
    const int p = i * kRowThreads + static_cast<int>(threadIdx.x);
    if (i * kRowThreads >= padded) break;
    int sum = 0;
    Word2 out{0, 0};
    if (finite) {
      out.x = quantise_word(held[i].x, held[i].y, factor, sum);
      out.y = quantise_word(held[i].z, held[i].w, factor, sum);
    }
    if (p < padded) reinterpret_cast<Word2*>(q.xq + int64_t{row} * padded * kPiece)[p] = out;
    for (int mask = together / 2; mask > 0; mask >>= 1) sum += shuffle_xor(sum, mask);
    all += sum;
    if (a.plan.scales > 1 && lane_index() % together == 0 && p < pieces) {
      q.sums[int64_t{row} * a.plan.scales + p / together] = sum;
    }
  }
  if (a.plan.scales == 1) {
    auto* sums = reinterpret_cast<int*>(shared) + kRowThreads / 32;
    if (lane_index() == 0) sums[warp_index()] = all;
    sync_threads();
    if (threadIdx.x == 0) {
      int total = 0;
      for (int w = 0; w < kRowThreads / 32; ++w) total += sums[w];
      q.sums[row] = total;
    }
  }
  if (threadIdx.x == 0) q.scale[row] = finite ? most / 127.0F : NAN;
}

bool in_pieces(const LinearArgs& a) {
  const bool fits = a.plan.scales == 1 || a.plan.group == 32 || a.plan.group == 64 ||
                    a.plan.group == 128 || a.plan.group == 256;
  return fits && a.order == nullptr && a.plan.in % kPiece == 0 && a.x_pitch % kPiece == 0 &&
         reinterpret_cast<uintptr_t>(a.x) % 16 == 0 &&
         a.plan.chunks() * (kChunk / kPiece) <= kPieces * kRowThreads;
}

}  // namespace

void quantise_rows(Stream s, const QuantArgs& q) {
  constexpr size_t kShared = 2 * (kRowThreads / 32) * sizeof(float);
  if (in_pieces(q.linear)) {
    start<QuantArgs, quantise_pieces_kernel>("quantise", {q.linear.rows}, kRowThreads, kShared, s,
                                             q);
  } else {
    start<QuantArgs, quantise_kernel>("quantise", {q.linear.rows}, kRowThreads, kShared, s, q);
  }
}

}  // namespace lorry::cuda
