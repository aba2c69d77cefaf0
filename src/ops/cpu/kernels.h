// The arithmetic of the CPU backend: one table of functions per instruction set. Every table gives
// the same bits (the algorithms are written once, over a vector of 16 floats; see vector_scalar.h),
// as long as denormals are flushed (flush_denormals.h), which the callers see to. AMX is the
// exception: what it does in whole numbers has the same bits, its bf16 matmul and attend have
// their own.
// Plain data only: these declarations are shared with files compiled for other instruction sets.
#pragma once
#include <stdint.h>

#include "ops/cpu/quant_layout.h"

namespace lorry::cpu {

constexpr int32_t kMostRows = 288;  // of one call of matmul, quant or quant_wide

// y [rows, cols] f32 = x [rows, in] times one panel of 64 outputs. Pitches are in elements.
struct MatmulArgs {
  const void* x;
  int64_t x_pitch;
  const void* panel;  // bf16 [ceil(in / 2)][64][2], f16 [ceil(in / 2)][2][64], f32 [in][64]
  const void* next;   // the panel that this thread reads after this one, to prefetch; or null
  float* y;
  int64_t y_pitch;
  int64_t in;
  int32_t rows, cols;   // cols <= 64
  bool resume = false;  // continue the sums in y
};

// y [rows, cols] f32 = x [rows, in] times one panel of 64 quantised outputs.
struct QuantArgs {
  // s8, each row padded with zeros to a multiple of 64 inputs; quant_wide: act.
  const void* x;
  int64_t x_pitch;
  const float* x_scale;  // [rows]; NaN for a row that is not finite
  const int32_t* x_sum;  // [rows, scales]: sums over the inputs of one scale
  const void* panel;
  const void* next;  // as in MatmulArgs
  QuantLayout layout;
  float* y;
  int64_t y_pitch;
  int32_t rows, cols;
};

// One row of x to s8.
struct QuantiseArgs {
  const void* x;         // bf16 or f16 [in]
  const int32_t* order;  // [in] or null: input k is x[order[k]]
  int64_t in, group;     // group: inputs of one sum
  int8_t* y;             // [y_size], a multiple of 64: zeros behind the inputs
  int64_t y_size;
  float* scale;
  int32_t* sum;
};

// t [rows, width] f32 = scale * x [rows, in] times one panel of A: up to 16 ranks.
struct ShrinkArgs {
  const void* x;
  int64_t x_pitch;
  const void* a;  // bf16 [ceil(in / 2)][width][2], f16 and f32 [in][width]
  int64_t in;
  int32_t width, rows;
  float scale;
  float* t;
  int64_t t_pitch;
};

// y [rows, cols] f32 += t [rows, rank] times one panel of B, in order of rank.
struct ExpandArgs {
  const float* t;
  int64_t t_pitch;
  const void* b;  // act [rank][64]
  int32_t rank, rows, cols;
  float* y;
  int64_t y_pitch;
  bool next = true;  // the panel behind this one is read next: prefetch it
};

// The largest of a row of scores so far, and its place; of equal ones the first. A value that is
// NaN or +inf: top stays +inf, at -1.
struct RowTop {
  float top;
  int32_t at;
};
// Scores [rows, cols] from place `column` on, cols <= 64.
struct TopsArgs {
  const float* y;
  int64_t y_pitch;
  int32_t rows, cols, column;
  RowTop* tops;  // [rows]
};

constexpr int32_t kSplitBlocks = 16;  // KV blocks of one attention split
constexpr int32_t kBlocksAhead = 4;

// One split for query rows of one KV head. Row r sees keys lo[r] ... hi[r], counted from the first
// key of block 0; a row that sees none of the split's keys gets sum 0 and max -inf.
struct AttendArgs {
  const void* q;  // [rows, d], from load_q
  // [blocks]: bf16 [d / 2][16][2], f16 and f32 [d][16], int8 [d][16] and f32 [16]
  const void* const* k;
  // [blocks]: bf16 [8][d][2], f16 and f32 [16][d], int8 [16][d] and f32 [16]
  const void* const* v;
  // [2 * blocks]: what is read kBlocksAhead after k[b], and after v[b], to prefetch.
  const void* const* ahead;
  const int32_t* lo;
  const int32_t* hi;
  int32_t rows, blocks, d;
  float scale;
  float* o;    // [rows, d]: sum of exp(s - max) v
  float* max;  // [rows]
  float* sum;  // [rows]
};

// Of one way to store keys and values.
struct AttendKernels {
  void (*split)(const AttendArgs&);
  // Rows of q, each n values, to what `split` multiplies by: rounded to bf16 or f16 where the keys
  // are, and stored so or wider. y: up to 4 bytes a value.
  void (*load_q)(void* y, const float* q, int64_t q_pitch, int64_t rows, int64_t n);
};

struct NormArgs {
  void* y;  // act [n]
  const float* x;
  const float* weight;
  int64_t n;
  float eps;
  bool centered;
};

// What depends on the type that linears read.
struct ActKernels {
  void (*matmul)(const MatmulArgs&);
  // Weights of any format, widened to act (bf16 and f16: fp8 alone).
  void (*quant_wide)(const QuantArgs&);
  void (*quantise)(const QuantiseArgs&);  // for `quant`; f32: null
  void (*shrink)(const ShrinkArgs&);
  void (*expand)(const ExpandArgs&);
  AttendKernels attend;
  void (*norm)(const NormArgs&);
  // y [n] act = activation(gate) * up, gu interleaved by 64; kind is the value of Activation.
  void (*glu)(void* y, const float* gu, int64_t n, int kind);
  // y = x + silu(v + bias), x and y act.
  void (*add_silu)(void* y, const void* x, const float* v, const float* bias, int64_t n);
  void (*widen)(float* y, const void* x, int64_t n);
  void (*narrow)(void* y, const float* x, int64_t n);
  void (*divide)(void* y, const float* x, float by, int64_t n);  // y act = x / by
};

struct Kernels {
  ActKernels bf16, f16, f32;
  int32_t tile_rows;   // linears are fastest with a multiple of so many rows
  int32_t block_rows;  // and with about so many that share each panel; up to kMostRows * 2 / 3
  // int8 and int4 in whole numbers.
  void (*quant)(const QuantArgs&);
  // What packing such weights takes; see quant_fit.h.
  void (*weight_range)(const float* w, int64_t n, float* range);
  void (*round_weights)(uint8_t* q, const float* w, int64_t n, float scale, int bound);
  void (*rounding_errors)(const float* w, int64_t n, const float* scales, int count, float* errors);
  // Keys and values in int8: attention; and y[i * pitch] and the scale of one token of a head.
  AttendKernels attend_int8;
  void (*quantise_kv)(int8_t* y, int64_t pitch, float* scale, const float* x, int64_t n);
  void (*add)(float* x, const float* y, int64_t n);
  void (*multiply)(float* x, const float* y, int64_t n);
  void (*clamp)(float* x, float limit, int64_t n);
  // One head: halves of x [2 * half].
  void (*rope)(float* x, const float* cos, const float* sin, int64_t half);
  // y = w x, and y += w x.
  void (*scale)(float* y, const float* x, float w, int64_t n);
  void (*axpy)(float* y, const float* x, float w, int64_t n);
  void (*softmax)(float* y, const float* x, int64_t n);
  // Of a row of scores; see ops/scores.h. Need no flushed denormals.
  int64_t (*arg_max)(const float* x, int64_t n);
  double (*sum_exp)(const float* x, float top, int64_t n);
  void (*tops)(const TopsArgs&);
  // Adds a split (max, sum, o) to the running state of one row.
  void (*merge)(float* state_max_sum, float* state_o, const float* max_sum, const float* o,
                int64_t d);
  // Probes: a loop of multiplications in registers; a sum over memory; int8 products or null.
  void (*spin)(int64_t iterations, float* sink);
  double spin_flops;  // of one iteration
  void (*read)(const void* p, int64_t bytes, float* sink);
  void (*spin_int8)(int64_t iterations, float* sink);
  double spin_int8_ops;
};

const Kernels& scalar_kernels();
// Only where the processor is an x86-64.
const Kernels& avx2_kernels();
const Kernels& avx512_kernels();
const Kernels& avx512_fma_kernels();
const Kernels& amx_kernels();

}  // namespace lorry::cpu
