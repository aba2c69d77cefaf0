// What kernels are written with: CUDA's own where nvcc compiles, else the same on simt/simt.h. The
// only place that tells the two apart, with launch.h and the runtime.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#include <cuda_runtime.h>
#define LORRY_DEVICE __device__ __forceinline__
// Threads of a block, and blocks that a processor shall have room for.
#define LORRY_KERNEL(...) __global__ void __launch_bounds__(__VA_ARGS__)
#define LORRY_UNROLL _Pragma("unroll")
#else
#include "ops/cuda/simt/simt.h"
#define LORRY_DEVICE inline
#define LORRY_KERNEL(...) void
#define LORRY_UNROLL
#define threadIdx (::lorry::simt::built().thread_idx)
#define blockIdx (::lorry::simt::built().block_idx)
#define blockDim (::lorry::simt::built().block_dim)
#define gridDim (::lorry::simt::built().grid_dim)
#endif

namespace lorry::cuda {

// ---- bits ----

#ifdef __CUDACC__
LORRY_DEVICE float as_float(uint32_t x) { return __uint_as_float(x); }
LORRY_DEVICE uint32_t as_bits(float x) { return __float_as_uint(x); }
#else
LORRY_DEVICE float as_float(uint32_t x) {
  float f;
  memcpy(&f, &x, 4);
  return f;
}
LORRY_DEVICE uint32_t as_bits(float x) {
  uint32_t u;
  memcpy(&u, &x, 4);
  return u;
}
#endif

// (x & mask) ^ flip, in one instruction; the compiler takes two.
LORRY_DEVICE uint32_t and_xor(uint32_t x, uint32_t mask, uint32_t flip) {
#ifdef __CUDACC__
  uint32_t y;
  asm("lop3.b32 %0, %1, %2, %3, 0x6a;" : "=r"(y) : "r"(x), "r"(mask), "r"(flip));
  return y;
#else
  return (x & mask) ^ flip;
#endif
}

// Loads of 16 and 8 bytes; aligned as wide as they are.
struct alignas(16) Word4 {
  uint32_t x, y, z, w;
};
struct alignas(8) Word2 {
  uint32_t x, y;
};

// ---- threads ----

#ifdef __CUDACC__
LORRY_DEVICE void sync_threads() { __syncthreads(); }
LORRY_DEVICE int lane_index() { return static_cast<int>(threadIdx.x & 31U); }
// What the lanes of a warp wrote to shared memory can be read by the others.
LORRY_DEVICE void sync_warp() { __syncwarp(); }
LORRY_DEVICE float shuffle_xor(float x, int mask) { return __shfl_xor_sync(~0U, x, mask); }
LORRY_DEVICE int shuffle_xor(int x, int mask) { return __shfl_xor_sync(~0U, x, mask); }
LORRY_DEVICE int shuffle_up(int x, int by) { return __shfl_up_sync(~0U, x, by); }
// Bit l: what lane l says.
LORRY_DEVICE uint32_t ballot(bool x) { return __ballot_sync(~0U, x); }
LORRY_DEVICE int count_bits(uint32_t x) { return __popc(x); }
LORRY_DEVICE int lowest_bit(uint32_t x) { return __ffs(static_cast<int>(x)) - 1; }
LORRY_DEVICE unsigned char* shared_bytes() {
  extern __shared__ __align__(16) unsigned char lorry_shared[];
  return lorry_shared;
}
#else
using simt::sync_threads;
LORRY_DEVICE int lane_index() { return simt::lane(); }
LORRY_DEVICE void sync_warp() { simt::exchange({}); }
LORRY_DEVICE uint32_t shuffle_word(uint32_t x, int from) {
  const simt::Slot* all = simt::exchange({{x}});
  return all[from].word[0];
}
LORRY_DEVICE float shuffle_xor(float x, int mask) {
  return as_float(shuffle_word(as_bits(x), simt::lane() ^ mask));
}
LORRY_DEVICE int shuffle_xor(int x, int mask) {
  return static_cast<int>(shuffle_word(static_cast<uint32_t>(x), simt::lane() ^ mask));
}
LORRY_DEVICE uint32_t ballot(bool x) {
  const simt::Slot* all = simt::exchange({{x ? 1U : 0U}});
  uint32_t bits = 0;
  for (uint32_t l = 0; l < 32; ++l) bits |= all[l].word[0] << l;
  return bits;
}
LORRY_DEVICE int shuffle_up(int x, int by) {
  const int from = simt::lane() - by;
  return static_cast<int>(shuffle_word(static_cast<uint32_t>(x), from < 0 ? simt::lane() : from));
}
LORRY_DEVICE int count_bits(uint32_t x) { return __builtin_popcount(x); }
LORRY_DEVICE int lowest_bit(uint32_t x) { return __builtin_ctz(x); }
LORRY_DEVICE unsigned char* shared_bytes() {
  return reinterpret_cast<unsigned char*>(simt::shared_memory());
}
#endif

// Every kernel begins with begin_kernel, or has its parts: the next kernel's blocks may take their
// places as soon as all of this one's have called let_next_start or ended, and what the kernels
// before have written can be read from wait_for_previous on, not earlier. Weights and prompts of
// the host are there before. Kernels that stream weights let the next one start when a block is
// about to end: blocks that wait beside them make them slower.
#if defined(__CUDACC__) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
LORRY_DEVICE void let_next_start() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}
LORRY_DEVICE void wait_for_previous() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
#else
LORRY_DEVICE void let_next_start() {}
LORRY_DEVICE void wait_for_previous() {}
#endif
LORRY_DEVICE void begin_kernel() {
  let_next_start();
  wait_for_previous();
}
// What this thread has written to the device's memory, and what it has seen of others (of its block
// after a barrier), is seen before what it writes from here on.
LORRY_DEVICE void fence() {
#ifdef __CUDACC__
  __threadfence();
#endif
}
// *flag = value; whoever sees it sees what this thread, and the kernels that it has waited for,
// have written before.
LORRY_DEVICE void raise_flag(uint32_t* flag, uint32_t value) {
#ifdef __CUDACC__
  asm volatile("fence.acq_rel.gpu; st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(flag), "r"(value)
               : "memory");
#else
  *flag = value;
#endif
}
// Requires: a block that runs, or has run, raises it.
LORRY_DEVICE void wait_for_flag(const uint32_t* flag, uint32_t value) {
#ifdef __CUDACC__
  uint32_t now;
  do {
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(flag) : "memory");
  } while (now != value);
#else
  if (*flag != value) simt::fail("a flag that nobody raises");
#endif
}
// What other blocks have written lately.
LORRY_DEVICE float load_fresh(const float* p) {
#ifdef __CUDACC__
  return __ldcg(p);
#else
  return *p;
#endif
}
// Of 2; off by 2^-22 of it at most.
LORRY_DEVICE float power_of_2(float x) {
#ifdef __CUDACC__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return exp2f(x);
#endif
}
// The larger one; NaN if one is.
LORRY_DEVICE float larger_or_nan(float x, float y) {
#ifdef __CUDACC__
  float z;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(z) : "f"(x), "f"(y));
  return z;
#else
  return x > y || x != x ? x : y;
#endif
}
// *p += x, by many threads at once; what it was.
LORRY_DEVICE int32_t add_atomic(int32_t* p, int32_t x) {
#ifdef __CUDACC__
  return atomicAdd(p, x);
#else
  const int32_t was = *p;
  *p += x;
  return was;
#endif
}
// Asks for the 128 bytes around p to be brought near.
LORRY_DEVICE void prefetch(const void* p) {
#ifdef __CUDACC__
  asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
#else
  static_cast<void>(p);
#endif
}

// 16 bytes of the device's memory that no other thread of the block reads. The compiler does not
// move it beyond a barrier, as it does with other loads, so that it begins where the source says.
LORRY_DEVICE Word4 load_once(const void* p) {
#ifdef __CUDACC__
  Word4 v;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p)
               : "memory");
  return v;
#else
  return *static_cast<const Word4*>(p);
#endif
}

// ---- copies from the device's memory to shared memory that go on while a thread does other
// things. Those that a thread has started since the last commit are a group.
#ifdef __CUDACC__
LORRY_DEVICE uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}
// 16 bytes, both places aligned so; or zeros.
LORRY_DEVICE void copy_async(unsigned char* shared, const void* from, bool zeros = false) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
               "l"(from), "r"(zeros ? 0 : 16)
               : "memory");
}
// 16 bytes that other blocks nearby copy too.
LORRY_DEVICE void copy_async_near(unsigned char* shared, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(from)
               : "memory");
}
LORRY_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// All but the last kLeft groups of this thread have arrived.
template <int kLeft>
LORRY_DEVICE void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}
#else
LORRY_DEVICE void copy_async(unsigned char* shared, const void* from, bool zeros = false) {
  zeros ? memset(shared, 0, 16) : memcpy(shared, from, 16);
}
LORRY_DEVICE void copy_async_near(unsigned char* shared, const void* from) {
  memcpy(shared, from, 16);
}
LORRY_DEVICE void commit_copies() {}
template <int>
LORRY_DEVICE void wait_copies() {}
#endif

LORRY_DEVICE int warp_index() { return static_cast<int>(threadIdx.x >> 5U); }

// Of all lanes, in all lanes, in a fixed order.
LORRY_DEVICE float warp_sum(float x) {
  for (int mask = 16; mask > 0; mask >>= 1) x += shuffle_xor(x, mask);
  return x;
}
LORRY_DEVICE int warp_sum(int x) {
  for (int mask = 16; mask > 0; mask >>= 1) x += shuffle_xor(x, mask);
  return x;
}
LORRY_DEVICE uint32_t warp_max(uint32_t x) {
#if defined(__CUDACC__) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  return __reduce_max_sync(~0U, x);
#else
  for (int mask = 16; mask > 0; mask >>= 1) {
    const auto other = static_cast<uint32_t>(shuffle_xor(static_cast<int>(x), mask));
    x = other > x ? other : x;
  }
  return x;
#endif
}
// NaN where one is.
LORRY_DEVICE float warp_max(float x) {
  for (int mask = 16; mask > 0; mask >>= 1) {
    const float other = shuffle_xor(x, mask);
    x = other > x || other != other ? other : x;
  }
  return x;
}

// Of all threads of a block of kThreads, in a fixed order. `shared`: kThreads / 32 floats.
template <int kThreads>
LORRY_DEVICE float block_sum(float x, float* shared) {
  x = warp_sum(x);
  sync_threads();  // the last call's values have been read
  if (lane_index() == 0) shared[warp_index()] = x;
  sync_threads();
  float sum = shared[0];
  for (int w = 1; w < kThreads / 32; ++w) sum += shared[w];
  return sum;
}

}  // namespace lorry::cuda
