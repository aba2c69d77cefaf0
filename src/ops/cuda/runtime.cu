// runtime.h by CUDA.
#include <cuda_runtime.h>
#include <stdio.h>
#include <stdlib.h>

#include "ops/cuda/launch.h"
#include "ops/cuda/runtime.h"

namespace lorry::cuda {

namespace {

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  fprintf(stderr, "CUDA: %s: %s; the device is lost, restart the program\n", what,
          cudaGetErrorString(error));
  exit(70);
}

// Stands for all kernels: was it compiled for the device?
__global__ void probe_kernel() {}

cudaStream_t of(Stream s) { return static_cast<cudaStream_t>(s); }

}  // namespace

void check_launch(const char* kernel) { check(cudaGetLastError(), kernel); }

const char* why_no_device() {
  static char why[512];
  int driver = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
    return "there is no NVIDIA driver on this machine (libcuda.so.1 was not found)";
  }
  int n = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&n); error != cudaSuccess) {
    snprintf(why, sizeof why, "CUDA finds no device: %s (driver for CUDA %d.%d, program for %d.%d)",
             cudaGetErrorString(error), driver / 1000, driver % 1000 / 10, CUDART_VERSION / 1000,
             CUDART_VERSION % 1000 / 10);
    cudaGetLastError();
    return why;
  }
  if (n == 0) return "CUDA finds no device";
  // A kernel that was not compiled for the device.
  cudaFuncAttributes attributes{};
  if (cudaSetDevice(0) != cudaSuccess ||
      cudaFuncGetAttributes(&attributes, probe_kernel) != cudaSuccess) {
    cudaGetLastError();
    const DeviceFacts f = device_facts();
    snprintf(why, sizeof why, "%s has compute capability %d.%d, for which this program has no code",
             f.name, f.major, f.minor);
    return why;
  }
  return nullptr;
}

DeviceFacts device_facts() {
  cudaDeviceProp p{};
  check(cudaGetDeviceProperties(&p, 0), "device properties");
  DeviceFacts f{};
  snprintf(f.name, sizeof f.name, "%s", p.name);
  f.major = p.major;
  f.minor = p.minor;
  f.processors = p.multiProcessorCount;
  check(cudaMemGetInfo(&f.free, &f.memory), "memory of the device");
  return f;
}

bool has_wgmma() {
  cudaFuncAttributes attributes{};
  check(cudaFuncGetAttributes(&attributes, probe_kernel), "code for the device");
  return device_facts().major == 9 && attributes.ptxVersion >= 90;
}

void* allocate_device(size_t bytes) {
  void* p = nullptr;
  const cudaError_t error = cudaMalloc(&p, bytes);
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    return nullptr;
  }
  check(error, "memory of the device");
  return p;
}
void free_device(void* p) { check(cudaFree(p), "free memory of the device"); }

void* allocate_pinned(size_t bytes) {
  void* p = nullptr;
  const cudaError_t error = cudaMallocHost(&p, bytes);
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    return nullptr;
  }
  check(error, "pinned memory");
  return p;
}
void free_pinned(void* p) { check(cudaFreeHost(p), "free pinned memory"); }

// Where the system does not allow it copies are slower, and right.
void pin(void* p, size_t bytes) {
  if (cudaHostRegister(p, bytes, cudaHostRegisterDefault) != cudaSuccess) cudaGetLastError();
}

void unpin(void* p) {
  if (cudaHostUnregister(p) != cudaSuccess) cudaGetLastError();
}

Stream make_stream() {
  cudaStream_t s = nullptr;
  check(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking), "stream");
  return s;
}
void free_stream(Stream s) { check(cudaStreamDestroy(of(s)), "destroy stream"); }
void wait(Stream s) { check(cudaStreamSynchronize(of(s)), "wait for the device"); }

void copy_in(Stream s, void* to, const void* from, size_t bytes) {
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, of(s)), "copy to the device");
}
void copy_out(Stream s, void* to, const void* from, size_t bytes) {
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, of(s)), "copy from the device");
}
void copy_within(Stream s, void* to, const void* from, size_t bytes) {
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, of(s)), "copy on the device");
}
void clear(Stream s, void* to, size_t pitch, size_t width, size_t rows) {
  if (width == 0 || rows == 0) return;
  // A pitch is at most 2 GiB, a block of memory is not.
  const cudaError_t error = rows == 1 ? cudaMemsetAsync(to, 0, width, of(s))
                                      : cudaMemset2DAsync(to, pitch, 0, width, rows, of(s));
  check(error, "clear memory of the device");
}

}  // namespace lorry::cuda
