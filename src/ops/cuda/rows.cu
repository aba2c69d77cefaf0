// The operations that work row by row.
#include "ops/cuda/activation.h"
#include "ops/cuda/kernels.h"
#include "ops/cuda/launch.h"

namespace lorry::cuda {

namespace {

constexpr int kThreads = 256;

// f(row, column) for all elements, spread over the grid.
template <class F>
LORRY_DEVICE void each_element(int64_t rows, int64_t cols, F&& f) {
  const int64_t c = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (c >= cols) return;
  for (int64_t r = blockIdx.y; r < rows; r += gridDim.y) f(r, c);
}

template <class T>
LORRY_KERNEL(kThreads)
embed_kernel(EmbedArgs a) {
  begin_kernel();
  each_element(a.rows, a.cols, [&](int64_t r, int64_t c) {
    const int32_t id = a.ids[r];
    const T* table = static_cast<const T*>(a.table);
    a.y[r * a.y_pitch + c] = id < 0 ? 0.0F : widen(table[id * a.table_pitch + c]);
  });
}

// Four neighbours of a row; those beyond its end are not there.
struct Quad {
  float v[4];
};
LORRY_DEVICE Quad load_quad(const float* x, int64_t c, int64_t cols) {
  Quad q{};
  if (c + 4 <= cols && reinterpret_cast<uintptr_t>(x + c) % 16 == 0) {
    const Word4 w = *reinterpret_cast<const Word4*>(x + c);
    return {as_float(w.x), as_float(w.y), as_float(w.z), as_float(w.w)};
  }
  LORRY_UNROLL
  for (int e = 0; e < 4; ++e) q.v[e] = c + e < cols ? x[c + e] : 0.0F;
  return q;
}

template <class T>
struct alignas(4 * sizeof(T)) Four {
  T v[4];
};

// to[c], to[c + 1] ... = x[c] + y[c] ..., which it returns. to may be x.
LORRY_DEVICE Quad add_quad(float* to, const float* x, const float* y, int64_t c, int64_t cols) {
  const Quad left = load_quad(x, c, cols);
  const Quad right = load_quad(y, c, cols);
  Four<float> sum{};
  LORRY_UNROLL
  for (int i = 0; i < 4; ++i) sum.v[i] = left.v[i] + right.v[i];
  if (c + 4 <= cols && reinterpret_cast<uintptr_t>(to + c) % sizeof(sum) == 0) {
    *reinterpret_cast<Four<float>*>(to + c) = sum;
  } else {
    for (int i = 0; c + i < cols && i < 4; ++i) to[c + i] = sum.v[i];
  }
  return {sum.v[0], sum.v[1], sum.v[2], sum.v[3]};
}

// A block a row; a thread has every kThreads-th quad of it. kHeld of them are kept in registers;
// with 0, for rows of any length, they are read three times.
template <class T, int kHeld>
LORRY_KERNEL(kThreads)
norm_kernel(NormArgs a) {
  let_next_start();
  float* shared = reinterpret_cast<float*>(shared_bytes());
  const float* x = a.x + blockIdx.x * a.x_pitch;
  float* summed = a.sum == nullptr ? nullptr : a.sum + blockIdx.x * a.x_pitch;
  const float* part = a.part == nullptr ? nullptr : a.part + blockIdx.x * a.part_pitch;
  T* y = static_cast<T*>(a.y) + blockIdx.x * a.y_pitch;
  const auto n = static_cast<float>(a.cols);
  const auto column = [](int i) { return (int64_t{i} * kThreads + threadIdx.x) * 4; };
  constexpr int kRoom = kHeld > 0 ? kHeld : 1;
  Quad weights[kRoom];
  Quad values[kRoom];
  LORRY_UNROLL
  for (int i = 0; i < kHeld; ++i) weights[i] = load_quad(a.weight, column(i), a.cols);
  wait_for_previous();
  LORRY_UNROLL
  for (int i = 0; i < kHeld; ++i) {
    values[i] = part == nullptr ? load_quad(x, column(i), a.cols)
                                : add_quad(summed, x, part, column(i), a.cols);
  }
  const auto quads = static_cast<int>((a.cols + 4 * kThreads - 1) / (4 * kThreads));
  if (kHeld == 0 && part != nullptr) {
    for (int i = 0; i < quads; ++i) add_quad(summed, x, part, column(i), a.cols);
    x = summed;
  }
  // f(value, weight, column) for what this thread has.
  const auto each = [&](auto&& f) {
    LORRY_UNROLL
    for (int i = 0; i < (kHeld > 0 ? kHeld : quads); ++i) {
      const Quad value = kHeld > 0 ? values[i % kRoom] : load_quad(x, column(i), a.cols);
      const Quad weight = kHeld > 0 ? weights[i % kRoom] : load_quad(a.weight, column(i), a.cols);
      LORRY_UNROLL
      for (int e = 0; e < 4; ++e) {
        if (column(i) + e < a.cols) f(value.v[e], weight.v[e], column(i) + e);
      }
    }
  };
  float mean = 0;
  if (a.centered) {
    float sum = 0;
    each([&](float value, float, int64_t) { sum += value; });
    mean = block_sum<kThreads>(sum, shared) / n;
  }
  float squares = 0;
  each([&](float value, float, int64_t) {
    const float d = value - mean;
    squares = fmaf(d, d, squares);
  });
  const float factor = 1.0F / sqrtf(block_sum<kThreads>(squares, shared) / n + a.eps);
  each([&](float value, float weight, int64_t c) {
    narrow(y[c], (value - mean) * factor * weight);
  });
}

LORRY_KERNEL(kThreads) clamp_kernel(ClampArgs a) {
  begin_kernel();
  each_element(a.rows, a.cols, [&](int64_t r, int64_t c) {
    float& x = a.x[r * a.pitch + c];
    x = x < -a.limit ? -a.limit : x > a.limit ? a.limit : x;  // NaN stays
  });
}

LORRY_KERNEL(kThreads) rope_kernel(RopeArgs a) {
  begin_kernel();
  each_element(a.rows, a.cols / 2, [&](int64_t r, int64_t c) {
    const auto i = static_cast<int32_t>(c) % static_cast<int32_t>(a.half);
    float* head = a.x + r * a.pitch + (c - i) * 2;
    const float cos = a.cos[r * a.cos_pitch + i];
    const float sin = a.sin[r * a.sin_pitch + i];
    const float first = head[i];
    const float second = head[a.half + i];
    head[i] = fmaf(first, cos, -(second * sin));
    head[a.half + i] = fmaf(second, cos, first * sin);
  });
}

// One token of one head by a warp; t: its place in the block.
LORRY_DEVICE void write_head(uint16_t* k, uint16_t* v, const float* k_row, const float* v_row,
                             int d, int t) {
  const auto width = static_cast<int>(head_width(true, d));
  for (int i = lane_index(); i < width; i += 32) {
    k[t * width + i] = i < d ? to_bf16(k_row[i]) : uint16_t{0};
    v[place_in_v(width, t, i)] = i < d ? to_bf16(v_row[i]) : uint16_t{0};
  }
}
LORRY_DEVICE void write_head(float* k, float* v, const float* k_row, const float* v_row, int d,
                             int t) {
  for (int i = lane_index(); i < d; i += 32) {
    k[t * d + i] = k_row[i];
    v[t * d + i] = v_row[i];
  }
}
LORRY_DEVICE void quantise_head(int8_t* block, const float* x, int d, int t) {
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
LORRY_DEVICE void write_head(int8_t* k, int8_t* v, const float* k_row, const float* v_row, int d,
                             int t) {
  quantise_head(k, k_row, d, t);
  quantise_head(v, v_row, d, t);
}

template <class T>
LORRY_KERNEL(kThreads)
kv_write_kernel(KvWriteArgs a) {
  begin_kernel();
  const int64_t at = int64_t{blockIdx.x} * (kThreads / 32) + warp_index();
  const int64_t row = at / a.kv_heads;
  const int64_t head = at % a.kv_heads;
  if (row >= a.rows || a.slots[row] < 0) return;
  const int64_t place = (int64_t{a.slots[row] / kTokens} * a.kv_heads + head) * a.block_bytes;
  write_head(reinterpret_cast<T*>(a.k + place), reinterpret_cast<T*>(a.v + place),
             a.k_rows + row * a.k_pitch + head * a.head_dim,
             a.v_rows + row * a.v_pitch + head * a.head_dim, a.head_dim, a.slots[row] % kTokens);
}

template <class Word>
LORRY_KERNEL(kThreads)
gather_kernel(GatherArgs a) {
  begin_kernel();
  each_element(a.rows, a.bytes / static_cast<int64_t>(sizeof(Word)), [&](int64_t r, int64_t c) {
    const auto* from = reinterpret_cast<const Word*>(a.x + a.index[r] * a.x_pitch);
    reinterpret_cast<Word*>(a.y + r * a.y_pitch)[c] = from[c];
  });
}

template <class T>
LORRY_KERNEL(kThreads)
glu_kernel(GluArgs a) {
  begin_kernel();
  const auto one = [&](float x, float up) {
    T y;
    narrow(y, gated(a.activation, x, up));
    return y;
  };
  each_element(a.rows, (a.cols + 3) / 4, [&](int64_t r, int64_t quad) {
    const int64_t c = 4 * quad;
    const float* gate = a.gu + r * a.gu_pitch + c / 64 * 128 + c % 64;
    T* y = static_cast<T*>(a.y) + r * a.y_pitch + c;
    const auto n = static_cast<int>(a.cols - c < 4 ? a.cols - c : 4);
    const Quad x = load_quad(gate, 0, n);
    const Quad up = load_quad(gate + 64, 0, n);
    Four<T> out{};
    LORRY_UNROLL
    for (int i = 0; i < 4; ++i) out.v[i] = one(x.v[i], up.v[i]);
    if (n == 4 && reinterpret_cast<uintptr_t>(y) % sizeof(out) == 0) {
      *reinterpret_cast<Four<T>*>(y) = out;
    } else {
      for (int i = 0; i < n; ++i) y[i] = out.v[i];
    }
  });
}

LORRY_KERNEL(kThreads) combine_kernel(CombineArgs a) {
  begin_kernel();
  each_element(a.rows, a.cols, [&](int64_t r, int64_t c) {
    float sum = 0;
    bool first = true;
    for (int32_t j = 0; j < a.k; ++j) {
      const int32_t slot = a.slot[r * a.slot_pitch + j];
      if (slot < 0) continue;
      const float w = a.weight[r * a.weight_pitch + j];
      const float x = a.d[slot * a.d_pitch + c];
      sum = first ? x * w : fmaf(x, w, sum);
      first = false;
    }
    a.y[r * a.y_pitch + c] = sum;
  });
}

LORRY_KERNEL(kThreads) add_kernel(AddArgs a) {
  begin_kernel();
  each_element(a.rows, (a.cols + 3) / 4, [&](int64_t r, int64_t quad) {
    float* x = a.x + r * a.x_pitch;
    add_quad(x, x, a.y + r * a.y_pitch, 4 * quad, a.cols);
  });
}

template <class T>
LORRY_KERNEL(kThreads)
add_silu_kernel(AddSiluArgs a) {
  begin_kernel();
  each_element(a.rows, a.cols, [&](int64_t r, int64_t c) {
    const float x = widen(static_cast<const T*>(a.x)[r * a.x_pitch + c]);
    const float step = silu(a.v[r * a.v_pitch + c] + a.bias[c]);
    narrow(static_cast<T*>(a.y)[r * a.y_pitch + c], x + step);
  });
}

template <class T>
void norm_as(Stream s, const NormArgs& a) {
  constexpr size_t kShared = kThreads / 32 * sizeof(float);
  constexpr int64_t kOfAQuad = int64_t{4} * kThreads;
  if (a.cols <= 4 * kOfAQuad) {
    return start<NormArgs, norm_kernel<T, 4>>("norm", {a.rows}, kThreads, kShared, s, a);
  }
  if (a.cols <= 8 * kOfAQuad) {
    return start<NormArgs, norm_kernel<T, 8>>("norm", {a.rows}, kThreads, kShared, s, a);
  }
  start<NormArgs, norm_kernel<T, 0>>("norm", {a.rows}, kThreads, kShared, s, a);
}

}  // namespace

void embed(Stream s, const EmbedArgs& a, bool bf16) {
  const Grid grid = elements(a.rows, a.cols, kThreads);
  if (bf16) return start<EmbedArgs, embed_kernel<Bf16>>("embed", grid, kThreads, 0, s, a);
  start<EmbedArgs, embed_kernel<float>>("embed", grid, kThreads, 0, s, a);
}

void norm(Stream s, const NormArgs& a, bool bf16) {
  if (bf16) return norm_as<Bf16>(s, a);
  norm_as<float>(s, a);
}

void clamp(Stream s, const ClampArgs& a) {
  start<ClampArgs, clamp_kernel>("clamp", elements(a.rows, a.cols, kThreads), kThreads, 0, s, a);
}

void rope(Stream s, const RopeArgs& a) {
  const Grid grid = elements(a.rows, a.cols / 2, kThreads);
  start<RopeArgs, rope_kernel>("rope", grid, kThreads, 0, s, a);
}

void kv_write(Stream s, const KvWriteArgs& a, KvType type) {
  const Grid grid{ceil_div(int64_t{a.rows} * a.kv_heads, kThreads / 32)};
  switch (type) {
    case KvType::bf16:
      return start<KvWriteArgs, kv_write_kernel<uint16_t>>("kv_write", grid, kThreads, 0, s, a);
    case KvType::f32:
      return start<KvWriteArgs, kv_write_kernel<float>>("kv_write", grid, kThreads, 0, s, a);
    case KvType::int8:
      return start<KvWriteArgs, kv_write_kernel<int8_t>>("kv_write", grid, kThreads, 0, s, a);
  }
}

void gather(Stream s, const GatherArgs& a) {
  const auto fits = [&](uintptr_t n) {
    return (reinterpret_cast<uintptr_t>(a.x) | reinterpret_cast<uintptr_t>(a.y) |
            static_cast<uintptr_t>(a.x_pitch | a.y_pitch | a.bytes)) %
               n ==
           0;
  };
  const auto grid = [&](int64_t n) { return elements(a.rows, a.bytes / n, kThreads); };
  if (fits(16)) {
    return start<GatherArgs, gather_kernel<Word4>>("gather", grid(16), kThreads, 0, s, a);
  }
  start<GatherArgs, gather_kernel<uint16_t>>("gather", grid(2), kThreads, 0, s, a);
}

void glu(Stream s, const GluArgs& a, bool bf16) {
  const Grid grid = elements(a.rows, ceil_div(a.cols, 4), kThreads);
  if (bf16) return start<GluArgs, glu_kernel<Bf16>>("glu", grid, kThreads, 0, s, a);
  start<GluArgs, glu_kernel<float>>("glu", grid, kThreads, 0, s, a);
}

void combine(Stream s, const CombineArgs& a) {
  const Grid grid = elements(a.rows, a.cols, kThreads);
  start<CombineArgs, combine_kernel>("combine", grid, kThreads, 0, s, a);
}

void add(Stream s, const AddArgs& a) {
  const Grid grid = elements(a.rows, ceil_div(a.cols, 4), kThreads);
  start<AddArgs, add_kernel>("add", grid, kThreads, 0, s, a);
}

void add_silu(Stream s, const AddSiluArgs& a, bool bf16) {
  const Grid grid = elements(a.rows, a.cols, kThreads);
  if (bf16) return start<AddSiluArgs, add_silu_kernel<Bf16>>("add_silu", grid, kThreads, 0, s, a);
  start<AddSiluArgs, add_silu_kernel<float>>("add_silu", grid, kThreads, 0, s, a);
}

}  // namespace lorry::cuda
