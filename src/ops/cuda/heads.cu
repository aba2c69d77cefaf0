// What becomes of queries, keys and values before attention: limits, rotation, and the cache.
#include "ops/cuda/kernels.h"
#include "ops/cuda/launch.h"
#include "ops/cuda/numbers.h"

namespace lorry::cuda {

namespace {

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;

LORRY_DEVICE float clamped(float x, float limit) {  // NaN stays
  return x < -limit ? -limit : x > limit ? limit : x;
}

LORRY_KERNEL(kThreads) clamp_kernel(ClampArgs a) {
  begin_kernel();
  const int64_t c = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (c >= a.cols) return;
  for (int64_t r = blockIdx.y; r < a.rows; r += gridDim.y) {
    float& x = a.x[r * a.pitch + c];
    x = clamped(x, a.limit);
  }
}

struct Pair {
  float first, second;
};
LORRY_DEVICE Pair rotated(Pair x, float cos, float sin) {
  return {fmaf(x.first, cos, -(x.second * sin)), fmaf(x.second, cos, x.first * sin)};
}
// Element i of the halves of a head of row r.
LORRY_DEVICE Pair rotate(const RopeArgs& a, int64_t r, int64_t i, Pair x) {
  return rotated(x, a.cos[r * a.cos_pitch + i], a.sin[r * a.sin_pitch + i]);
}

LORRY_KERNEL(kThreads) rope_kernel(RopeArgs a) {
  begin_kernel();
  const int64_t c = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (c >= a.cols / 2) return;
  const int64_t i = c % a.half;
  for (int64_t r = blockIdx.y; r < a.rows; r += gridDim.y) {
    float* head = a.x + r * a.pitch + (c - i) * 2;
    const Pair x = rotate(a, r, i, {head[i], head[a.half + i]});
    head[i] = x.first;
    head[a.half + i] = x.second;
  }
}

// One token of one head by a warp; t: its place in the block.
template <class T>
LORRY_DEVICE void write_key(T* k, const float* x, int d, int t) {
  const auto width = static_cast<int>(head_width(d));
  for (int i = lane_index(); i < width; i += 32) {
    k[t * width + i].bits = i < d ? T::to(x[i]) : uint16_t{0};
  }
}
template <class T>
LORRY_DEVICE void write_value(T* v, const float* x, int d, int t) {
  const auto width = static_cast<int>(head_width(d));
  for (int i = lane_index(); i < width; i += 32) {
    v[place_in_v(width, t, i)].bits = i < d ? T::to(x[i]) : uint16_t{0};
  }
}
LORRY_DEVICE void write_key(float* k, const float* x, int d, int t) {
  for (int i = lane_index(); i < d; i += 32) k[t * d + i] = x[i];
}
LORRY_DEVICE void write_value(float* v, const float* x, int d, int t) { write_key(v, x, d, t); }
LORRY_DEVICE void write_key(int8_t* block, const float* x, int d, int t) {
  float most = 0;
  for (int i = lane_index(); i < d; i += 32) {
    const float size = fabsf(x[i]);
    most = size > most || size != size ? size : most;
  }
  most = warp_max(most);
  const bool finite = most < INFINITY;
  const float factor = finite && most > 0 ? 127.0F / most : 0.0F;
  for (int i = lane_index(); i < d; i += 32) {
    const float q = finite ? rintf(x[i] * factor) : 0.0F;
    block[t * d + i] = static_cast<int8_t>(q > 127.0F ? 127.0F : q < -127.0F ? -127.0F : q);
  }
  if (lane_index() == 0) {
    reinterpret_cast<float*>(block + kTokens * d)[t] = finite ? most / 127.0F : NAN;
  }
}
LORRY_DEVICE void write_value(int8_t* block, const float* x, int d, int t) {
  write_key(block, x, d, t);
}

// Where the block of a slot and head begins.
LORRY_DEVICE int64_t block_at(const KvWriteArgs& a, int32_t slot, int64_t head) {
  return (int64_t{slot / kTokens} * a.kv_heads + head) * a.block_bytes;
}

template <class T>
LORRY_KERNEL(kThreads)
kv_write_kernel(KvWriteArgs a) {
  begin_kernel();
  const int64_t at = int64_t{blockIdx.x} * kWarps + warp_index();
  const int64_t row = at / a.kv_heads;
  const int64_t head = at % a.kv_heads;
  if (row >= a.rows || a.slots[row] < 0) return;
  const int64_t place = block_at(a, a.slots[row], head);
  const int token = a.slots[row] % kTokens;
  write_key(reinterpret_cast<T*>(a.k + place), a.k_rows + row * a.k_pitch + head * a.head_dim,
            a.head_dim, token);
  write_value(reinterpret_cast<T*>(a.v + place), a.v_rows + row * a.v_pitch + head * a.head_dim,
              a.head_dim, token);
}

// A warp a head of a row. Keys and values are put together in shared memory.
template <class T>
LORRY_KERNEL(kThreads)
rope_write_kernel(RopeWriteArgs a) {
  begin_kernel();
  const KvWriteArgs& w = a.write;
  const int64_t at = int64_t{blockIdx.x} * kWarps + warp_index();
  const int64_t all = int64_t{a.heads} + int64_t{2} * w.kv_heads;
  const int64_t row = at / all;
  const auto head = static_cast<int32_t>(at % all);
  if (row >= w.rows) return;
  const bool query = head < a.heads;
  const bool key = !query && head < a.heads + w.kv_heads;
  const int32_t slot = query ? 0 : w.slots[row];
  if (slot < 0) return;
  float* x = a.rope.x + row * a.rope.pitch + int64_t{head} * w.head_dim;
  float* to = query ? x : reinterpret_cast<float*>(shared_bytes()) + warp_index() * w.head_dim;
  const auto half = static_cast<int>(a.rope.half);
  for (int i = lane_index(); i < half; i += 32) {
    Pair p{clamped(x[i], a.limit), clamped(x[half + i], a.limit)};
    if (query || key) p = rotate(a.rope, row, i, p);
    to[i] = p.first;
    to[half + i] = p.second;
  }
  if (query) return;
  sync_warp();
  const int token = slot % kTokens;
  if (key) {
    const int64_t place = block_at(w, slot, head - a.heads);
    return write_key(reinterpret_cast<T*>(w.k + place), to, w.head_dim, token);
  }
  const int64_t place = block_at(w, slot, head - a.heads - w.kv_heads);
  write_value(reinterpret_cast<T*>(w.v + place), to, w.head_dim, token);
}

// The same for cached 16 bits and halves of whole quads: a thread has a quad of each half of a
// head, in registers.
struct Halves {
  float v[2][4];
};
LORRY_DEVICE void load_four(float (&v)[4], const float* x) {
  const Word4 w = *reinterpret_cast<const Word4*>(x);
  v[0] = as_float(w.x);
  v[1] = as_float(w.y);
  v[2] = as_float(w.z);
  v[3] = as_float(w.w);
}
LORRY_DEVICE Halves load_halves(const float* head, int half, float limit) {
  Halves x;
  load_four(x.v[0], head);
  load_four(x.v[1], head + half);
  LORRY_UNROLL
  for (int e = 0; e < 8; ++e) x.v[e / 4][e % 4] = clamped(x.v[e / 4][e % 4], limit);
  return x;
}
LORRY_DEVICE void rotate_halves(Halves& x, const float (&cos)[4], const float (&sin)[4]) {
  LORRY_UNROLL
  for (int e = 0; e < 4; ++e) {
    const Pair p = rotated({x.v[0][e], x.v[1][e]}, cos[e], sin[e]);
    x.v[0][e] = p.first;
    x.v[1][e] = p.second;
  }
}

// The second half goes `half` behind the first one.
LORRY_DEVICE void put_query(float* to, const Halves& x, int half) {
  LORRY_UNROLL
  for (int h = 0; h < 2; ++h) {
    const float(&v)[4] = x.v[h];
    *reinterpret_cast<Word4*>(to + h * half) = {as_bits(v[0]), as_bits(v[1]), as_bits(v[2]),
                                                as_bits(v[3])};
  }
}
template <class T>
LORRY_DEVICE void put_key(T* to, const Halves& x, int half) {
  LORRY_UNROLL
  for (int h = 0; h < 2; ++h) {
    const float(&v)[4] = x.v[h];
    *reinterpret_cast<Word2*>(to + h * half) = {T::pack(v[0], v[1]), T::pack(v[2], v[3])};
  }
}

// Values of two tokens lie element by element side by side: where the next row has the other one
// they are written together, by the first one's thread. i: the thread's place in the half.
template <class T>
LORRY_DEVICE void put_values(const RopeWriteArgs& a, int32_t row, int32_t slot, T* block,
                             const float* x, const Halves& own, int i) {
  const KvWriteArgs& w = a.write;
  const auto half = static_cast<int>(a.rope.half);
  const bool second = slot % 2 != 0;
  if (second && row > 0 && w.slots[row - 1] == slot - 1) return;
  T* to = block + place_in_v(2 * half, slot % kTokens, i);
  if (second || row + 1 == w.rows || w.slots[row + 1] != slot + 1) {
    LORRY_UNROLL
    for (int e = 0; e < 8; ++e) {
      to[2 * (e / 4 * half + e % 4)].bits = T::to(own.v[e / 4][e % 4]);
    }
    return;
  }
  const Halves next = load_halves(x + a.rope.pitch, half, a.limit);
  LORRY_UNROLL
  for (int h = 0; h < 2; ++h) {
    const float(&v)[4] = own.v[h];
    const float(&n)[4] = next.v[h];
    *reinterpret_cast<Word4*>(to + 2 * h * half) = {T::pack(v[0], n[0]), T::pack(v[1], n[1]),
                                                    T::pack(v[2], n[2]), T::pack(v[3], n[3])};
  }
}

// kLanes threads a head. grid: rows, heads.
template <class T, int kLanes>
LORRY_KERNEL(kThreads)
rope_write_quads_kernel(RopeWriteArgs a) {
  begin_kernel();
  const KvWriteArgs& w = a.write;
  const auto row = static_cast<int32_t>(blockIdx.x);
  const auto thread = static_cast<int32_t>(blockIdx.y * kThreads + threadIdx.x);
  const int32_t head = thread / kLanes;
  const int i = thread % kLanes * 4;
  const auto half = static_cast<int>(a.rope.half);
  if (i >= half || head >= a.heads + 2 * w.kv_heads) return;
  float* x = a.rope.x + row * a.rope.pitch + int64_t{head} * w.head_dim + i;
  const bool query = head < a.heads;
  const int32_t slot = query ? 0 : w.slots[row];
  Halves v = load_halves(x, half, a.limit);
  const int32_t value = head - a.heads - w.kv_heads;
  if (value >= 0) {
    if (slot < 0) return;
    return put_values(a, row, slot, reinterpret_cast<T*>(w.v + block_at(w, slot, value)), x, v, i);
  }
  float cos[4];
  float sin[4];
  load_four(cos, a.rope.cos + row * a.rope.cos_pitch + i);
  load_four(sin, a.rope.sin + row * a.rope.sin_pitch + i);
  rotate_halves(v, cos, sin);
  if (query) return put_query(x, v, half);
  if (slot < 0) return;
  T* block = reinterpret_cast<T*>(w.k + block_at(w, slot, head - a.heads));
  put_key(block + slot % kTokens * 2 * half + i, v, half);
}

constexpr int kMostLanes = 32;

bool in_quads(const RopeWriteArgs& a) {
  const RopeArgs& r = a.rope;
  const auto places = reinterpret_cast<uintptr_t>(r.x) | reinterpret_cast<uintptr_t>(r.cos) |
                      reinterpret_cast<uintptr_t>(r.sin) | reinterpret_cast<uintptr_t>(a.write.k) |
                      reinterpret_cast<uintptr_t>(a.write.v);
  return places % sizeof(Word4) == 0 && (r.pitch | r.cos_pitch | r.sin_pitch | r.half) % 4 == 0 &&
         2 * r.half == a.write.head_dim && r.half <= 4 * kMostLanes;
}

template <class T, int kLanes>
void rope_write_quads(Stream s, const RopeWriteArgs& a) {
  const int64_t heads = int64_t{a.heads} + int64_t{2} * a.write.kv_heads;
  start<RopeWriteArgs, rope_write_quads_kernel<T, kLanes>>(
      "rope_write", {a.write.rows, ceil_div(heads * kLanes, kThreads)}, kThreads, 0, s, a);
}

template <class T>
void rope_write_as(Stream s, const RopeWriteArgs& a) {
  if constexpr (sizeof(T) == 2) {
    if (in_quads(a)) {
      return a.rope.half <= 4 * kMostLanes / 2 ? rope_write_quads<T, kMostLanes / 2>(s, a)
                                               : rope_write_quads<T, kMostLanes>(s, a);
    }
  }
  const int64_t heads = int64_t{a.heads} + int64_t{2} * a.write.kv_heads;
  const size_t shared = sizeof(float) * kWarps * static_cast<size_t>(a.write.head_dim);
  start<RopeWriteArgs, rope_write_kernel<T>>("rope_write", {ceil_div(a.write.rows * heads, kWarps)},
                                             kThreads, shared, s, a);
}

template <class T>
void kv_write_as(Stream s, const KvWriteArgs& a) {
  start<KvWriteArgs, kv_write_kernel<T>>(
      "kv_write", {ceil_div(int64_t{a.rows} * a.kv_heads, kWarps)}, kThreads, 0, s, a);
}

// f(a value of the type that keys and values are stored in).
template <class F>
void with_kv(KvType type, F&& f) {
  switch (type) {
    case KvType::bf16:
      return f(Bf16{});
    case KvType::f16:
      return f(F16{});
    case KvType::f32:
      return f(float{});
    case KvType::int8:
      return f(int8_t{});
  }
}

}  // namespace

void clamp(Stream s, const ClampArgs& a) {
  start<ClampArgs, clamp_kernel>("clamp", elements(a.rows, a.cols, kThreads), kThreads, 0, s, a);
}

void rope(Stream s, const RopeArgs& a) {
  const Grid grid = elements(a.rows, a.cols / 2, kThreads);
  start<RopeArgs, rope_kernel>("rope", grid, kThreads, 0, s, a);
}

void kv_write(Stream s, const KvWriteArgs& a, KvType type) {
  with_kv(type, [&](auto kv) { kv_write_as<decltype(kv)>(s, a); });
}

void rope_write(Stream s, const RopeWriteArgs& a, KvType type) {
  with_kv(type, [&](auto kv) { rope_write_as<decltype(kv)>(s, a); });
}

}  // namespace lorry::cuda
