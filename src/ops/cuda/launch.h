// Starting a kernel, on the GPU or on simt/simt.h. A kernel takes one struct.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "ops/cuda/device.h"

namespace lorry::cuda {

// Ends the program with the error of the launch, if there was one.
void check_launch(const char* kernel);

struct Grid {
  int64_t x = 1, y = 1, z = 1;
  bool empty() const { return x == 0 || y == 0 || z == 0; }
};

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Blocks for n elements, kThreads apart; kernels stride by the whole grid.
inline Grid elements(int64_t n, int threads) {
  const int64_t blocks = ceil_div(n, threads);
  return {blocks < 8192 ? blocks : 8192};
}

#ifdef __CUDACC__
template <class Args, void (*kKernel)(Args)>
void start(const char* name, Grid grid, int threads, size_t shared, void* stream,
           const Args& args) {
  if (grid.empty()) return;
  const dim3 blocks(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y),
                    static_cast<unsigned>(grid.z));
  kKernel<<<blocks, static_cast<unsigned>(threads), shared, static_cast<cudaStream_t>(stream)>>>(
      args);
  check_launch(name);
}
#else
template <class Args, void (*kKernel)(Args)>
void start(const char*, Grid grid, int threads, size_t shared, void*, const Args& args) {
  if (grid.empty()) return;
  const simt::Dim3 blocks{static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y),
                          static_cast<unsigned>(grid.z)};
  simt::launch<Args, kKernel>(blocks, {static_cast<unsigned>(threads)}, shared, args);
}
#endif

}  // namespace lorry::cuda
