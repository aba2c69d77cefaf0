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
  int cluster = 1;  // blocks, side by side in x, that see each other's shared memory
  bool empty() const { return x == 0 || y == 0 || z == 0; }
};

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Blocks of `threads` for the elements of rows; kernels stride by the whole grid.
inline Grid elements(int64_t rows, int64_t cols, int threads) {
  constexpr int64_t kMostRows = 16384;
  return {ceil_div(cols, threads), rows < kMostRows ? rows : kMostRows};
}

#ifdef __CUDACC__
template <class Args, void (*kKernel)(Args)>
void start(const char* name, Grid grid, int threads, size_t shared, void* stream,
           const Args& args) {
  if (grid.empty()) return;
  constexpr size_t kAlwaysAllowed = 48 << 10;
  if (shared > kAlwaysAllowed) {
    cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                         static_cast<int>(shared));
  }
  cudaLaunchAttribute attributes[2]{};  // the first: see begin_kernel
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = static_cast<unsigned>(grid.cluster);
  attributes[1].val.clusterDim.y = attributes[1].val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y),
                        static_cast<unsigned>(grid.z));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = attributes;
  config.numAttrs = grid.cluster > 1 ? 2 : 1;
  cudaLaunchKernelEx(&config, kKernel, args);
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
