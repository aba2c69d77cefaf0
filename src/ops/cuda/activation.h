// The activations of gated linear units.
#pragma once
#include "ops/cuda/device.h"

namespace lorry::cuda {

LORRY_DEVICE float silu(float x) { return x / (1.0F + expf(-x)); }

// x (1 + tanh(u)) / 2 = x / (1 + e^-2u), u = sqrt(2 / pi) (x + 0.044715 x^3).
LORRY_DEVICE float gelu_tanh(float x) {
  const float cubic = fmaf(x * x, 0.044715F * x, x);
  return x / (1.0F + expf(-1.59576912F * cubic));
}
// x Phi(x), Phi's tail by erfc's rational Chebyshev fit and e^(-x^2 / 2) apart, with the rounding
// error of the square put back: as on the CPU (ops/cpu/rows.h).
LORRY_DEVICE float gelu_erf(float x) {
  if (x < -13.0F) return 0.0F;
  const float t = 1.0F / fmaf(0.5F, fabsf(x) * 0.707106781F, 1.0F);
  float p = fmaf(0.17087277F, t, -0.82215223F);
  p = fmaf(p, t, 1.48851587F);
  p = fmaf(p, t, -1.13520398F);
  p = fmaf(p, t, 0.27886807F);
  p = fmaf(p, t, -0.18628806F);
  p = fmaf(p, t, 0.09678418F);
  p = fmaf(p, t, 0.37409196F);
  p = fmaf(p, t, 1.00002368F);
  p = fmaf(p, t, -1.26551223F);
  const float half = -0.5F * x;
  const float square = half * x;
  const float gauss = expf(square);
  if (x >= 0.0F && gauss == 0.0F) return x;  // the square may not be finite
  const float lost = fmaf(half, x, -square);
  const float tail = 0.5F * (t * (gauss * (1.0F + lost) * expf(p)));
  return x * (x < 0.0F ? tail : 1.0F - tail);
}

// activation: as lorry::Activation.
LORRY_DEVICE float gated(int activation, float gate, float up) {
  const float active = activation == 0   ? silu(gate)
                       : activation == 1 ? gelu_tanh(gate)
                                         : gelu_erf(gate);
  return active * up;
}

}  // namespace lorry::cuda
