// Copies into shared memory that the copy engine makes, and the barriers at which threads wait for
// them; in clusters of kCluster blocks, which share what is copied, or kShrinkCluster, which add to
// one sum. On simt/simt.h a cluster is one block.
#pragma once
#include "ops/cuda/wgmma.h"

namespace lorry::cuda {

#ifdef __CUDACC__
constexpr int kCluster = 2;
constexpr int kShrinkCluster = 4;
// An mbarrier. Its phases have parity 0, 1, 0 ...; each ends when as many threads have arrived as
// it was made for, and all bytes that they expect.
struct alignas(8) Barrier {
  uint64_t word;
};
#else
constexpr int kCluster = 1;
constexpr int kShrinkCluster = 1;
using Barrier = simt::Barrier;
#endif

#ifdef LORRY_WGMMA_CODE

LORRY_DEVICE void init_barrier(Barrier* b, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(b)), "r"(arrivals)
               : "memory");
}
// What init_barrier did is seen by the cluster and the copy engine after the next sync_cluster.
LORRY_DEVICE void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
// Of all threads of the cluster's blocks.
LORRY_DEVICE void sync_cluster() {
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}
// Its halves, where nothing is published but barriers: that would take a barrier of the whole GPU's
// memory.
LORRY_DEVICE void arrive_cluster() { asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory"); }
LORRY_DEVICE void wait_cluster() { asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }
// *to = x at the same place of the cluster's first block, which has begun; its barrier in the same
// place receives the 16 bytes.
LORRY_DEVICE void send_to_first(Word4* to, const Word4& x, Barrier* b) {
  asm volatile(
      "{\n.reg .b32 there, barrier;\nmapa.shared::cluster.u32 there, %0, 0;\n"
      "mapa.shared::cluster.u32 barrier, %1, 0;\n"
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 "
      "[there], {%2, %3, %4, %5}, [barrier];\n}" ::"r"(shared_address(to)),
      "r"(shared_address(b)), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w)
      : "memory");
}
LORRY_DEVICE void arrive(Barrier* b) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(b)) : "memory");
}
// At the barrier in the same place of block `block` of the cluster. What the thread wrote is not
// published to that block: that would take a barrier of the whole GPU's memory.
LORRY_DEVICE void arrive_at(Barrier* b, int block) {
  asm volatile(
      "{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [there];\n}" ::"r"(shared_address(b)),
      "r"(block)
      : "memory");
}
LORRY_DEVICE void arrive_and_expect(Barrier* b, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(b)),
               "r"(bytes)
               : "memory");
}
// Until the phase of this parity has ended.
LORRY_DEVICE void wait(Barrier* b, uint32_t parity) {
  uint32_t done = 0;
  do {
    asm volatile(
        "{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.b32 %0, 1, 0, p;\n}"
        : "=r"(done)
        : "r"(shared_address(b)), "r"(parity)
        : "memory");
  } while (done == 0);
}
// To the same place in all blocks of the cluster; in each, the barrier in the same place receives
// the bytes. Both places and the size are multiples of 16 bytes.
LORRY_DEVICE void copy_to_cluster(unsigned char* shared, const unsigned char* from, int bytes,
                                  Barrier* b) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1], %2, [%3], %4;" ::"r"(shared_address(shared)),
      "l"(from), "r"(bytes), "r"(shared_address(b)), "h"(static_cast<uint16_t>((1 << kCluster) - 1))
      : "memory");
}

// Asks for what lies there to be brought into the L2 cache; place and size as above.
LORRY_DEVICE void prefetch_bulk(const unsigned char* from, int bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
}
// From here on the threads of a warpgroup have so many registers each; all its warps say so.
template <int kRegisters>
LORRY_DEVICE void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
LORRY_DEVICE void leave_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// threadIdx.x for what is needed rarely: what is computed from it is not kept in registers.
LORRY_DEVICE int thread_anew() {
  int x;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(x));
  return x;
}

#else

LORRY_DEVICE void publish_barriers() {}
LORRY_DEVICE int thread_anew() { return static_cast<int>(threadIdx.x); }
LORRY_DEVICE void prefetch_bulk(const unsigned char*, int) {}
template <int>
LORRY_DEVICE void take_registers() {}
template <int>
LORRY_DEVICE void leave_registers() {}

#ifdef __CUDACC__
// Not for this device; the host does not start kernels that would come here.
LORRY_DEVICE void init_barrier(Barrier*, int) { __trap(); }
LORRY_DEVICE void sync_cluster() {}
LORRY_DEVICE void arrive_cluster() {}
LORRY_DEVICE void wait_cluster() {}
LORRY_DEVICE void send_to_first(Word4*, const Word4&, Barrier*) {}
LORRY_DEVICE void arrive(Barrier*) {}
LORRY_DEVICE void arrive_at(Barrier*, int) {}
LORRY_DEVICE void arrive_and_expect(Barrier*, int) {}
LORRY_DEVICE void wait(Barrier*, uint32_t) {}
LORRY_DEVICE void copy_to_cluster(unsigned char*, const unsigned char*, int, Barrier*) {}
#else
LORRY_DEVICE void init_barrier(Barrier* b, int arrivals) { simt::init(*b, arrivals); }
LORRY_DEVICE void sync_cluster() { sync_threads(); }
LORRY_DEVICE void arrive_cluster() {}
LORRY_DEVICE void wait_cluster() { sync_threads(); }
LORRY_DEVICE void send_to_first(Word4* to, const Word4& x, Barrier* b) {
  *to = x;
  simt::receive(*b, sizeof x);
}
LORRY_DEVICE void arrive(Barrier* b) { simt::arrive(*b, 0); }
LORRY_DEVICE void arrive_at(Barrier* b, int) { simt::arrive(*b, 0); }
LORRY_DEVICE void arrive_and_expect(Barrier* b, int bytes) { simt::arrive(*b, bytes); }
LORRY_DEVICE void wait(Barrier* b, uint32_t parity) { simt::wait(*b, parity); }
LORRY_DEVICE void copy_to_cluster(unsigned char* shared, const unsigned char* from, int bytes,
                                  Barrier* b) {
  memcpy(shared, from, static_cast<size_t>(bytes));
  simt::receive(*b, bytes);
}
#endif
#endif

}  // namespace lorry::cuda
