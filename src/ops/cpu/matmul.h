// Rows times one packed panel of 64 outputs, and the two halves of LoRA. Each (row, output) has one
// accumulator, summed in order of k, whatever the shape of the tile that computes it.
#pragma once
#include "ops/cpu/kernels.h"

namespace lorry::cpu {
namespace {

constexpr int64_t kStepBytes = 256;  // of a panel: 64 outputs by one step of k
// Panels longer than this are read in parts, so that a part stays in L2 while all rows pass over
// it.
constexpr int64_t kPartSteps = 1024;
// How far ahead of its own reading a single pass prefetches.
constexpr int64_t kAheadSteps = 24;
constexpr int64_t kLoraAhead = 1024;  // the same for A and B, in elements

// Where a pass prefetches: from `at`, one step's share per step, and from `then` after `until`.
struct Ahead {
  const char* at;
  const char* then;
  int64_t until;
};

template <class A>
struct Pass {
  const typename A::X* x;  // first row, first k of the part
  int64_t x_pitch;
  const typename A::Element* panel;
  float* y;
  int64_t y_pitch;
  int64_t steps;  // whole steps
  bool tail;      // one more k after them
  bool resume;    // continue the sums in y
  int cols;
  Ahead ahead;
};

// One step of k for a tile: c += x times 16 NV columns of the panel.
template <class A, int MR, int NV, bool Last = false>
LORRY_INLINE void multiply(V16* c, const typename A::X* x, int64_t pitch,
                           const typename A::Element* panel) {
  constexpr int kVector = A::kVector;
  if constexpr (A::kWide) {
    unroll<2>([&](auto turn) LORRY_UNROLLED {
      constexpr int kOf = A::k_of(turn);
      V16 b[NV];
      unroll<NV>([&](auto j) LORRY_UNROLLED { b[j] = A::weights(panel + j * kVector, kOf); });
      unroll<MR>([&](auto i) LORRY_UNROLLED {
        const V16 a = set1(x[i * pitch + kOf]);
        unroll<NV>([&](auto j) LORRY_UNROLLED { accumulate(c[i * NV + j], a, b[j]); });
      });
    });
  } else {
    typename A::Step b[NV];
    unroll<NV>([&](auto j) LORRY_UNROLLED { b[j] = A::steps(panel + j * kVector); });
    unroll<MR>([&](auto i) LORRY_UNROLLED {
      const typename A::Step a =
          Last ? A::broadcast_last(x + i * pitch) : A::broadcast(x + i * pitch);
      unroll<NV>([&](auto j) LORRY_UNROLLED { c[i * NV + j] = A::dot(a, b[j], c[i * NV + j]); });
    });
  }
}

// MR rows by NV vectors of columns from vector `first`. PF: cache lines to prefetch a step.
template <class A, int MR, int NV, int PF>
LORRY_INLINE void tile(const Pass<A>& p, int first) {
  constexpr int64_t kElements = kStepBytes / sizeof(typename A::Element);
  constexpr int kVector = A::kVector;
  V16 c[MR * NV];
  const bool whole = p.cols - 16 * first >= 16 * NV;
  unroll<MR>([&](auto i) LORRY_UNROLLED {
    unroll<NV>([&](auto j) LORRY_UNROLLED {
      const int column = 16 * (first + j);
      const float* y = p.y + i * p.y_pitch + column;
      c[i * NV + j] = !p.resume ? zero() : whole ? load(y) : load_n(y, p.cols - column);
    });
  });
  const auto* panel = p.panel + first * kVector;
  const auto* x = p.x;
  const char* ahead = p.ahead.at;
  for (int64_t k = 0; k < p.steps; ++k) {
    if constexpr (PF > 0) {
      if (k == p.ahead.until) ahead = p.ahead.then;
      unroll<PF>([&](auto j) LORRY_UNROLLED { __builtin_prefetch(ahead + 64 * j, 0, 2); });
      ahead += 64 * PF;
    }
    multiply<A, MR, NV>(c, x, p.x_pitch, panel);
    panel += kElements;
    x += A::kStep;
  }
  if constexpr (!A::kWide) {
    if (p.tail) multiply<A, MR, NV, true>(c, x, p.x_pitch, panel);
  }
  unroll<MR>([&](auto i) LORRY_UNROLLED {
    unroll<NV>([&](auto j) LORRY_UNROLLED {
      const int column = 16 * (first + j);
      float* y = p.y + i * p.y_pitch + column;
      whole ? store(y, c[i * NV + j]) : store_n(y, c[i * NV + j], p.cols - column);
    });
  });
}

// The columns after a pass's first vectors: without prefetches, so one function for every PF.
template <class A, int MR>
void pass_rest(const Pass<A>& p) {
  constexpr int kVectors = tile_vectors(MR);
  for (int j = kVectors; 16 * j < p.cols; j += kVectors) tile<A, MR, kVectors, 0>(p, j);
}

template <class A, int MR, int PF>
void pass_of(const Pass<A>& p) {
  constexpr int kVectors = tile_vectors(MR);
  tile<A, MR, kVectors, PF>(p, 0);
  if constexpr (kVectors < 4) pass_rest<A, MR>(p);
}

// As plan_ahead has it: 4 lines in a single pass, 2 or 1 in those of several, 1 from four passes
// on.
template <class A, int MR>
LORRY_INLINE void pass_lines(const Pass<A>& p, int64_t lines) {
  if constexpr (MR >= fewest_rows(2)) {
    if (lines == 0) return pass_of<A, MR, 0>(p);
    if (lines == 2) return pass_of<A, MR, 2>(p);
  }
  if constexpr (MR >= fewest_rows(4)) {
    if (lines == 1) return pass_of<A, MR, 1>(p);
  }
  pass_of<A, MR, 4>(p);
}

template <class A, int MR>
LORRY_INLINE void pass_rows(const Pass<A>& p, int rows, int64_t lines) {
  if constexpr (MR > 1) {
    if (rows < MR) return pass_rows<A, MR - 1>(p, rows, lines);
  }
  pass_lines<A, MR>(p, lines);
}

// The prefetches of pass `pass` of `passes` over `steps` steps at `part`; `next` is read after it.
// Returns the lines a step: together the passes fetch all of `next` once.
LORRY_INLINE int64_t plan_ahead(Ahead& ahead, int pass, int passes, int64_t steps, const char* part,
                                const char* next) {
  if (passes == 1) {
    // Memory-bound: run ahead in the panel that is being read, then enter the next.
    ahead = {part + kAheadSteps * kStepBytes, next != nullptr ? next : part, steps - kAheadSteps};
    if (steps <= kAheadSteps) ahead = {ahead.then, ahead.then, -1};
    return 4;
  }
  const int64_t lines = passes >= 4 ? 1 : 2;
  if (next == nullptr || pass * lines >= 4) return 0;
  ahead = {next + pass * lines * 64 * steps, next, -1};
  return lines;
}

template <class A>
void matmul(const MatmulArgs& m) {
  using Element = typename A::Element;
  const int passes = (m.rows + kMaxRows - 1) / kMaxRows;
  const int64_t steps = m.in / A::kStep;
  const int64_t part = passes == 1 ? steps + 1 : kPartSteps;
  for (int64_t k = 0; k == 0 || k < steps; k += part) {
    const int64_t end = k + part < steps ? k + part : steps;
    const char* here = static_cast<const char*>(m.panel) + k * kStepBytes;
    const char* next = end < steps ? here + part * kStepBytes : static_cast<const char*>(m.next);
    Pass<A> p{static_cast<const Element*>(m.x) + k * A::kStep,
              m.x_pitch,
              reinterpret_cast<const Element*>(here),
              m.y,
              m.y_pitch,
              end - k,
              end == steps && m.in % A::kStep != 0,
              k != 0 || m.resume,
              m.cols,
              {}};
    // Passes of nearly equal height: 4 + 4 rather than 6 + 2.
    for (int pass = 0; pass < passes; ++pass) {
      const int rows = m.rows / passes + (pass < m.rows % passes ? 1 : 0);
      const int64_t lines = plan_ahead(p.ahead, pass, passes, end - k, here, next);
      pass_rows<A, kMaxRows>(p, rows, lines);
      p.x += rows * m.x_pitch;
      p.y += rows * m.y_pitch;
    }
  }
}

// A: Bf16Wide, as matmul<Bf16> bit for bit, or F16Wide. A part of x at a time is widened into a
// buffer that stays in L1. Rows of x may end in the middle of a step; panels do not.
template <class A>
void matmul_wide(const MatmulArgs& m) {
  constexpr int64_t kSteps = 64;  // a part of the panel (16 KiB) stays in L1 as well
  alignas(64) float wide[kMaxRows * 2 * kSteps];
  const int passes = (m.rows + kMaxRows - 1) / kMaxRows;
  const int64_t steps = (m.in + 1) / 2;
  for (int64_t k = 0; k < steps; k += kSteps) {
    const int64_t end = k + kSteps < steps ? k + kSteps : steps;
    const int64_t elements = (m.in < 2 * end ? m.in : 2 * end) - 2 * k;
    const char* here = static_cast<const char*>(m.panel) + k * kStepBytes;
    const char* next = end < steps ? here + kSteps * kStepBytes : static_cast<const char*>(m.next);
    const uint16_t* x = static_cast<const uint16_t*>(m.x) + 2 * k;
    Pass<A> p{wide,  2 * kSteps,         reinterpret_cast<const uint16_t*>(here),
              m.y,   m.y_pitch,          end - k,
              false, k != 0 || m.resume, m.cols,
              {}};
    for (int pass = 0; pass < passes; ++pass) {
      const int rows = m.rows / passes + (pass < m.rows % passes ? 1 : 0);
      for (int r = 0; r < rows; ++r, x += m.x_pitch) {
        float* to = wide + r * 2 * kSteps;
        for_vectors(elements, [&](int64_t i, int n) LORRY_UNROLLED {
          store(to + i, widen_some<typename A::Narrow>(x + i, n));
        });
      }
      const int64_t lines = plan_ahead(p.ahead, pass, passes, end - k, here, next);
      pass_rows<A, kMaxRows>(p, rows, lines);
      p.y += rows * m.y_pitch;
    }
  }
}

// A row's products with 16 ranks: four sums, by step modulo 4, for the sake of one-row calls.
template <class A, int R, bool Whole>
LORRY_INLINE void shrink_tile(const ShrinkArgs& s, const typename A::Element* x, float* t) {
  const auto* a = static_cast<const typename A::Element*>(s.a);
  const int64_t stride = s.width * A::kStep;
  V16 c[R * 4];
  unroll<R * 4>([&](auto i) LORRY_UNROLLED { c[i] = zero(); });
  const auto step = [&](auto j, auto broadcast) LORRY_UNROLLED {
    const typename A::Step b = Whole ? A::steps(a) : A::steps_n(a, s.width);
    // One row is bound by memory, and pages of 4 KiB stop the processor's own prefetching.
    __builtin_prefetch(a + kLoraAhead, 0, 2);
    a += stride;
    unroll<R>([&](auto i) LORRY_UNROLLED {
      c[i * 4 + j] = A::dot(broadcast(x + i * s.x_pitch), b, c[i * 4 + j]);
    });
    x += A::kStep;
  };
  const auto whole_step = [](const auto* at) LORRY_UNROLLED { return A::broadcast(at); };
  const int64_t steps = s.in / A::kStep;
  for (int64_t k = 0; k + 4 <= steps; k += 4) {
    unroll<4>([&](auto j) LORRY_UNROLLED { step(j, whole_step); });
  }
  unroll<4>([&](auto j) LORRY_UNROLLED {
    if (j < steps % 4) {
      step(j, whole_step);
    } else if (j == steps % 4 && s.in % A::kStep != 0) {
      step(j, [](const auto* at) LORRY_UNROLLED { return A::broadcast_last(at); });
    }
  });
  unroll<R>([&](auto i) LORRY_UNROLLED {
    const V16 sum = add(add(c[i * 4], c[i * 4 + 1]), add(c[i * 4 + 2], c[i * 4 + 3]));
    store_some(t + i * s.t_pitch, mul(set1(s.scale), sum), Whole ? 16 : s.width);
  });
}

template <class A, int R>
LORRY_INLINE void shrink_rows(const ShrinkArgs& s, int rows, const typename A::Element* x,
                              float* t) {
  if constexpr (R > 1) {
    if (rows < R) return shrink_rows<A, R - 1>(s, rows, x, t);
  }
  s.width == 16 ? shrink_tile<A, R, true>(s, x, t) : shrink_tile<A, R, false>(s, x, t);
}

template <class A>
void shrink(const ShrinkArgs& s) {
  for (int r = 0; r < s.rows; r += kShrinkRows) {
    shrink_rows<A, kShrinkRows>(s, smaller(kShrinkRows, s.rows - r),
                                static_cast<const typename A::Element*>(s.x) + r * s.x_pitch,
                                s.t + r * s.t_pitch);
  }
}

template <class A, int MR, int NV>
LORRY_INLINE void expand_tile(const ExpandArgs& e, const float* t, float* y, int first) {
  const auto* b = static_cast<const typename A::Element*>(e.b) + 16 * first;
  const bool whole = e.cols - 16 * first >= 16 * NV;
  V16 c[MR * NV];
  unroll<MR>([&](auto i) LORRY_UNROLLED {
    unroll<NV>([&](auto j) LORRY_UNROLLED {
      const int column = 16 * (first + j);
      const float* at = y + i * e.y_pitch + column;
      c[i * NV + j] = whole ? load(at) : load_n(at, e.cols - column);
    });
  });
  const int64_t ahead = e.next ? kLoraAhead : 0;
  for (int r = 0; r < e.rank; ++r, b += 64, ++t) {
    V16 w[NV];
    __builtin_prefetch(b + ahead, 0, 2);
    __builtin_prefetch(b + ahead + 32, 0, 2);
    unroll<NV>([&](auto j) LORRY_UNROLLED { w[j] = A::widen(b + 16 * j); });
    unroll<MR>([&](auto i) LORRY_UNROLLED {
      const V16 a = set1(t[i * e.t_pitch]);
      unroll<NV>([&](auto j) LORRY_UNROLLED { c[i * NV + j] = fma(a, w[j], c[i * NV + j]); });
    });
  }
  unroll<MR>([&](auto i) LORRY_UNROLLED {
    unroll<NV>([&](auto j) LORRY_UNROLLED {
      const int column = 16 * (first + j);
      float* at = y + i * e.y_pitch + column;
      whole ? store(at, c[i * NV + j]) : store_n(at, c[i * NV + j], e.cols - column);
    });
  });
}

template <class A, int MR>
LORRY_INLINE void expand_rows(const ExpandArgs& e, int rows, const float* t, float* y) {
  if constexpr (MR > 1) {
    if (rows < MR) return expand_rows<A, MR - 1>(e, rows, t, y);
  }
  constexpr int kVectors = tile_vectors(MR);
  for (int j = 0; 16 * j < e.cols; j += kVectors) expand_tile<A, MR, kVectors>(e, t, y, j);
}

template <class A>
void expand(const ExpandArgs& e) {
  for (int r = 0; r < e.rows; r += kMaxRows) {
    expand_rows<A, kMaxRows>(e, smaller(kMaxRows, e.rows - r), e.t + r * e.t_pitch,
                             e.y + r * e.y_pitch);
  }
}

}  // namespace
}  // namespace lorry::cpu
