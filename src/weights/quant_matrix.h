// QuantMatrix: the integers and scales of one quantised Linear, the same form whatever packed it.
#pragma once
#include "base/memory.h"
#include "lorry/tensor.h"
#include "weights/quant_scheme.h"

namespace lorry {

// One Linear: value(o, k) = scale * (q - zero), or scale * q with fp8; it is the weight of output o
// for packed input k, whose scale is column k / group (column 0 without groups).
struct QuantMatrix {
  QuantScheme::Kind kind = QuantScheme::Kind::none;
  int32_t group = 0;  // inputs that share a scale; 0: all
  Tensor q;           // u8 [out, in]: int8 0 ... 255, int4 0 ... 15, fp8 the e4m3 bytes
  Tensor scale;       // f32 [out, n_scales], finite
  Tensor zero;        // u8 as scale; no data when symmetric: then it is 128 (int8) or 8 (int4)
  Tensor order;       // i32 [in]: packed input k is input order[k] of x; no data: they are in order
  Buffer memory;      // of the four
};

// Rows [first, first + dst.rows()) of m as f32, the inputs in the order of x. dst is f32 [n, in].
void dequantise(const Tensor& dst, const QuantMatrix& m, int64_t first);

}  // namespace lorry
