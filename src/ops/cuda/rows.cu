// The operations that work row by row.
#include "ops/cuda/activation.h"
#include "ops/cuda/kernels.h"
#include "ops/cuda/launch.h"
#include "ops/cuda/numbers.h"

namespace lorry::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kNormThreads = 512;  // so many that a thread has little of a row

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

// The same where it is all there or not at all, in one load without a branch.
LORRY_DEVICE Quad load_whole(const float* x, int64_t c, int64_t cols) {
  const Word4 w = c < cols ? *reinterpret_cast<const Word4*>(x + c) : Word4{0, 0, 0, 0};
  return {as_float(w.x), as_float(w.y), as_float(w.z), as_float(w.w)};
}

template <class T>
struct alignas(4 * sizeof(T)) Four {
  T v[4];
};

// to[c], to[c + 1] ... = q, of those that are there.
template <class T>
LORRY_DEVICE void store_quad(T* to, const Quad& q, int64_t c, int64_t cols) {
  Four<T> four{};
  LORRY_UNROLL
  for (int i = 0; i < 4; ++i) narrow(four.v[i], q.v[i]);
  if (c + 4 <= cols && reinterpret_cast<uintptr_t>(to + c) % sizeof(four) == 0) {
    *reinterpret_cast<Four<T>*>(to + c) = four;
  } else {
    for (int i = 0; c + i < cols && i < 4; ++i) to[c + i] = four.v[i];
  }
}

// The first of this thread's quads, kBlock, the block's threads, apart: of a row of f32. kWhole:
// rows are whole quads, and lie at multiples of one.
template <int kN, int kBlock = kThreads, bool kWhole = false>
struct Quads {
  Quad v[kN];

  LORRY_DEVICE static int64_t column(int i) { return (int64_t{i} * kBlock + threadIdx.x) * 4; }
  LORRY_DEVICE void load(const float* x, int64_t first, int64_t cols) {
    LORRY_UNROLL
    for (int i = 0; i < kN; ++i) {
      const int64_t c = first + column(i);
      v[i] = kWhole ? load_whole(x, c, cols) : load_quad(x, c, cols);
    }
  }
};

// What the experts of row r have made, summed in order of choice. Loads do not wait for each other.
template <int kN, int kBlock, bool kWhole>
LORRY_DEVICE void combine_quads(Quads<kN, kBlock, kWhole>& sum, const CombineArgs& a, int64_t r,
                                int64_t first) {
  constexpr int kAhead = kN == 3 ? 4 : 2;  // as many as registers hold
  sum = {};
  bool fresh = true;
  for (int32_t j = 0; j < a.k; j += kAhead) {
    int32_t slot[kAhead];
    float w[kAhead];
    Quads<kN, kBlock, kWhole> x[kAhead];
    LORRY_UNROLL
    for (int i = 0; i < kAhead; ++i) {
      const int32_t choice = j + i < a.k ? j + i : j;
      slot[i] = a.slot[r * a.slot_pitch + choice];
      w[i] = a.weight[r * a.weight_pitch + choice];
    }
    LORRY_UNROLL
    for (int i = 0; i < kAhead; ++i) {
      if (j + i >= a.k) break;
      x[i].load(a.d + (slot[i] < 0 ? 0 : slot[i]) * a.d_pitch, first, a.cols);
    }
    LORRY_UNROLL
    for (int i = 0; i < kAhead; ++i) {
      if (j + i >= a.k || slot[i] < 0) continue;
      LORRY_UNROLL
      for (int n = 0; n < kN; ++n) {
        LORRY_UNROLL
        for (int e = 0; e < 4; ++e) {
          sum.v[n].v[e] = fresh ? x[i].v[n].v[e] * w[i] : fmaf(x[i].v[n].v[e], w[i], sum.v[n].v[e]);
        }
      }
      fresh = false;
    }
  }
}

// x += y, and to a row in memory.
template <int kN, int kBlock, bool kWhole>
LORRY_DEVICE void add_quads(Quads<kN, kBlock, kWhole>& x, const Quads<kN, kBlock, kWhole>& y,
                            float* to, int64_t first, int64_t cols) {
  LORRY_UNROLL
  for (int i = 0; i < kN; ++i) {
    LORRY_UNROLL
    for (int e = 0; e < 4; ++e) x.v[i].v[e] = x.v[i].v[e] + y.v[i].v[e];
    store_quad(to, x.v[i], first + Quads<kN, kBlock, kWhole>::column(i), cols);
  }
}

// Quads of a norm's x with what is added to it, which is stored.
template <int kN, int kBlock, bool kWhole>
LORRY_DEVICE void load_sum(Quads<kN, kBlock, kWhole>& x, const NormArgs& a, int64_t row,
                           int64_t first) {
  x.load(a.x + row * a.x_pitch, first, a.cols);
  if (a.sum == nullptr) return;
  Quads<kN, kBlock, kWhole> part;
  if (a.experts.d != nullptr) {
    combine_quads(part, a.experts, row, first);
  } else {
    part.load(a.part + row * a.part_pitch, first, a.cols);
  }
  add_quads(x, part, a.sum + row * a.x_pitch, first, a.cols);
}

// A block a row; a thread has every kNormThreads-th quad of it. kHeld of them are kept in
// registers; with 0, for rows of any length, they are read three times.
template <class T, int kHeld>
LORRY_KERNEL(kNormThreads)
norm_kernel(NormArgs a) {
  let_next_start();
  float* shared = reinterpret_cast<float*>(shared_bytes());
  const int64_t row = blockIdx.x;
  const auto n = static_cast<float>(a.cols);
  const auto quads = static_cast<int>((a.cols + 4 * kNormThreads - 1) / (4 * kNormThreads));
  const auto begin = [](int i) { return int64_t{i} * kNormThreads * 4; };
  using Held = Quads<(kHeld > 0 ? kHeld : 1), kNormThreads, (kHeld > 0)>;
  Held weights;
  Held values;
  if (kHeld > 0) weights.load(a.weight, 0, a.cols);
  wait_for_previous();
  if (kHeld > 0) load_sum(values, a, row, 0);
  const float* x = a.x + row * a.x_pitch;
  if (kHeld == 0 && a.sum != nullptr) {
    for (int i = 0; i < quads; ++i) load_sum(values, a, row, begin(i));
    x = a.sum + row * a.x_pitch;
  }
  // f(quad, weights, column) for what this thread has.
  const auto each = [&](auto&& f) {
    if constexpr (kHeld > 0) {
      LORRY_UNROLL
      for (int i = 0; i < kHeld; ++i) f(values.v[i], weights.v[i], Held::column(i));
    } else {
      for (int i = 0; i < quads; ++i) {
        const int64_t c = begin(i) + Held::column(0);
        f(load_quad(x, c, a.cols), load_quad(a.weight, c, a.cols), c);
      }
    }
  };
  // Sums of f(value) over the row.
  const auto sum_of = [&](auto&& f) {
    float sum = 0;
    each([&](const Quad& q, const Quad&, int64_t c) {
      LORRY_UNROLL
      for (int e = 0; e < 4; ++e) {
        if (c + e < a.cols) sum = f(sum, q.v[e]);
      }
    });
    return block_sum<kNormThreads>(sum, shared);
  };
  float mean = 0;
  if (a.centered) mean = sum_of([](float sum, float v) { return sum + v; }) / n;
  const float squares = sum_of([mean](float sum, float v) {
    const float d = v - mean;
    return fmaf(d, d, sum);
  });
  const float factor = 1.0F / sqrtf(squares / n + a.eps);
  each([&](const Quad& q, const Quad& weight, int64_t c) {
    Quad y{};
    LORRY_UNROLL
    for (int e = 0; e < 4; ++e) y.v[e] = (q.v[e] - mean) * factor * weight.v[e];
    store_quad(static_cast<T*>(a.y) + row * a.y_pitch, y, c, a.cols);
  });
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
  each_element(a.rows, (a.cols + 3) / 4, [&](int64_t r, int64_t quad) {
    const int64_t c = 4 * quad;
    const float* gate = a.gu + r * a.gu_pitch + c / 64 * 128 + c % 64;
    T* y = static_cast<T*>(a.y) + r * a.y_pitch + c;
    const auto n = static_cast<int>(a.cols - c < 4 ? a.cols - c : 4);
    const Quad x = load_quad(gate, 0, n);
    const Quad up = load_quad(gate + 64, 0, n);
    Quad out{};
    LORRY_UNROLL
    for (int i = 0; i < 4; ++i) out.v[i] = gated(a.activation, x.v[i], up.v[i]);
    store_quad(y, out, 0, n);
  });
}

LORRY_KERNEL(kThreads) combine_kernel(CombineArgs a) {
  begin_kernel();
  const int64_t first = int64_t{blockIdx.x} * kThreads * 4;
  for (int64_t r = blockIdx.y; r < a.rows; r += gridDim.y) {
    Quads<1> sum;
    combine_quads(sum, a, r, first);
    store_quad(a.y + r * a.y_pitch, sum.v[0], first + Quads<1>::column(0), a.cols);
  }
}

LORRY_KERNEL(kThreads) add_kernel(AddArgs a) {
  begin_kernel();
  const int64_t first = int64_t{blockIdx.x} * kThreads * 4;
  for (int64_t r = blockIdx.y; r < a.rows; r += gridDim.y) {
    Quads<1> x;
    Quads<1> y;
    x.load(a.x + r * a.x_pitch, first, a.cols);
    y.load(a.y + r * a.y_pitch, first, a.cols);
    add_quads(x, y, a.x + r * a.x_pitch, first, a.cols);
  }
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

template <class T, int kHeld>
void start_norm(Stream s, const NormArgs& a) {
  constexpr size_t kShared = kNormThreads / 32 * sizeof(float);
  start<NormArgs, norm_kernel<T, kHeld>>("norm", {a.rows}, kNormThreads, kShared, s, a);
}
bool has_whole_quads(const NormArgs& a) {
  const auto at = [](const void* p) { return reinterpret_cast<uintptr_t>(p); };
  const auto places = at(a.x) | at(a.sum) | at(a.part) | at(a.experts.d) | at(a.weight);
  return places % sizeof(Quad) == 0 &&
         (a.cols | a.x_pitch | a.part_pitch | a.experts.d_pitch) % 4 == 0;
}
template <class T>
void norm_as(Stream s, const NormArgs& a) {
  constexpr int64_t kOfAQuad = int64_t{4} * kNormThreads;
  if (!has_whole_quads(a)) return start_norm<T, 0>(s, a);
  if (a.cols <= 2 * kOfAQuad) return start_norm<T, 2>(s, a);
  if (a.cols <= 3 * kOfAQuad) return start_norm<T, 3>(s, a);
  if (a.cols <= 4 * kOfAQuad) return start_norm<T, 4>(s, a);
  start_norm<T, 0>(s, a);
}

}  // namespace

void embed(Stream s, const EmbedArgs& a, Act act) {
  const Grid grid = elements(a.rows, a.cols, kThreads);
  with_act(act, [&](auto x) {
    start<EmbedArgs, embed_kernel<decltype(x)>>("embed", grid, kThreads, 0, s, a);
  });
}

void norm(Stream s, const NormArgs& a, Act act) {
  with_act(act, [&](auto y) { norm_as<decltype(y)>(s, a); });
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

void glu(Stream s, const GluArgs& a, Act act) {
  const Grid grid = elements(a.rows, ceil_div(a.cols, 4), kThreads);
  with_act(act, [&](auto x) {
    start<GluArgs, glu_kernel<decltype(x)>>("glu", grid, kThreads, 0, s, a);
  });
}

void combine(Stream s, const CombineArgs& a) {
  const Grid grid = elements(a.rows, ceil_div(a.cols, 4), kThreads);
  start<CombineArgs, combine_kernel>("combine", grid, kThreads, 0, s, a);
}

void add(Stream s, const AddArgs& a) {
  const Grid grid = elements(a.rows, ceil_div(a.cols, 4), kThreads);
  start<AddArgs, add_kernel>("add", grid, kThreads, 0, s, a);
}

void add_silu(Stream s, const AddSiluArgs& a, Act act) {
  const Grid grid = elements(a.rows, a.cols, kThreads);
  with_act(act, [&](auto x) {
    start<AddSiluArgs, add_silu_kernel<decltype(x)>>("add_silu", grid, kThreads, 0, s, a);
  });
}

}  // namespace lorry::cuda
