// A small CUDA machine on the CPU: runs the kernels of this folder, compiled as C++, so that their
// real source is tested where there is no GPU. Blocks run one after another; the threads of a block
// are fibers that give way at barriers and at the operations of a warp. Slow, and strict: shared
// memory starts as NaN, a barrier or a warp operation that not all threads reach aborts, and tests
// run the warps in both orders, so that a missing barrier shows.
// One thread of the host at a time.
#pragma once
#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace lorry::simt {

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
};

// What a lane gives to the others of its warp in one operation.
struct Slot {
  uint32_t word[8];
};

struct Built {
  Dim3 thread_idx, block_idx, block_dim, grid_dim;
};
// Of the thread that runs.
const Built& built();

// Order in which the warps of a block, and their lanes, take turns.
enum class Schedule : uint8_t { forward, backward };
void set_schedule(Schedule s);

using Body = void (*)(const void* args);
// Runs body(args) as every thread of every block. Requires: whole warps, at most 1024 threads.
void run(Dim3 grid, Dim3 block, size_t shared_bytes, Body body, const void* args);

// For kernels:
void sync_threads();
// All 32 lanes call it; returns what each of them gave. Valid until the lane's next call.
const Slot* exchange(const Slot& own);
int lane();
std::byte* shared_memory();
// Lets the other threads run first; aborts when that has helped nobody for long.
void give_way();

// An mbarrier in shared memory. A phase ends when `arrivals` threads have arrived in it, and as
// many bytes as they said to expect.
struct Barrier {
  int32_t arrivals, missing;
  int32_t bytes;
  uint32_t phase;
};
void init(Barrier& b, int arrivals);
void arrive(Barrier& b, int expected_bytes);
void receive(Barrier& b, int bytes);
// Until the phase of this parity has ended.
void wait(const Barrier& b, uint32_t parity);
// Ends the program: the block cannot go on.
[[noreturn]] void fail(const char* why);

template <class Args, void (*kKernel)(Args)>
void launch(Dim3 grid, Dim3 block, size_t shared_bytes, const Args& args) {
  run(
      grid, block, shared_bytes, [](const void* a) { kKernel(*static_cast<const Args*>(a)); },
      &args);
}

}  // namespace lorry::simt
