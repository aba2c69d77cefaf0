#include "ops/cuda/simt/simt.h"

#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include <sys/mman.h>

#include "base/error.h"

// Saves the callee's registers on the stack of the fiber that gives way, takes those of the other.
asm(R"(
.text
.globl lorry_simt_switch
.type lorry_simt_switch, @function
lorry_simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size lorry_simt_switch, .-lorry_simt_switch
)");
extern "C" void lorry_simt_switch(void** save, void* load);

#ifdef __SANITIZE_ADDRESS__
extern "C" void __sanitizer_start_switch_fiber(void** save, const void* bottom, size_t size);
extern "C" void __sanitizer_finish_switch_fiber(void* save, const void** bottom, size_t* size);
#endif

namespace lorry::simt {

namespace {

constexpr int kWarp = 32;
constexpr int kMaxThreads = 1024;
constexpr size_t kStack = size_t{128} << 10;

enum class State : uint8_t { ready, at_warp, at_block, done };

struct Fiber {
  void* sp = nullptr;
  void* fake_stack = nullptr;  // AddressSanitizer's
  State state = State::done;
};

struct Warp {
  int arrived = 0;
  int parity = 0;  // the slots of an operation stay while the next one is filled
  std::array<std::array<Slot, kWarp>, 2> slots;
};

struct Machine {
  Machine() {
    void* p = mmap(nullptr, kStack * kMaxThreads, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    LORRY_CHECK(p != MAP_FAILED, "no memory for the stacks of an emulated block");
    stacks = static_cast<std::byte*>(p);
  }
  ~Machine() { munmap(stacks, kStack * kMaxThreads); }
  Machine(const Machine&) = delete;
  Machine& operator=(const Machine&) = delete;

  std::byte* stacks;
  std::array<Fiber, kMaxThreads> fibers;
  std::array<Warp, kMaxThreads / kWarp> warps;
  std::vector<std::byte> shared;
  Schedule schedule = Schedule::forward;
  Built built;
  Body body = nullptr;
  const void* args = nullptr;
  void* scheduler_sp = nullptr;
  void* scheduler_fake_stack = nullptr;
  const void* scheduler_bottom = nullptr;
  size_t scheduler_size = 0;
  int threads = 0;
  int current = 0;
  int gave_way = 0;  // since a thread last did something else
  bool running = false;
};

// Of each thread that starts kernels: ranks of a test are threads of one process.
Machine& machine() {
  thread_local Machine m;
  return m;
}

std::byte* stack_of(Machine& m, int thread) {
  return m.stacks + static_cast<size_t>(thread) * kStack;
}

void to_scheduler(Machine& m) {
  Fiber& f = m.fibers[static_cast<size_t>(m.current)];
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(f.state == State::done ? nullptr : &f.fake_stack,
                                 m.scheduler_bottom, m.scheduler_size);
#endif
  lorry_simt_switch(&f.sp, m.scheduler_sp);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(f.fake_stack, &m.scheduler_bottom, &m.scheduler_size);
#endif
}

void wait(State state) {
  Machine& m = machine();
  m.fibers[static_cast<size_t>(m.current)].state = state;
  m.gave_way = 0;
  to_scheduler(m);
}

void fiber_main() {
  Machine& m = machine();
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(nullptr, &m.scheduler_bottom, &m.scheduler_size);
#endif
  m.body(m.args);
  wait(State::done);
  std::abort();  // nobody resumes it
}

void prepare(Machine& m, int thread) {
  Fiber& f = m.fibers[static_cast<size_t>(thread)];
  auto* top = reinterpret_cast<void**>(stack_of(m, thread) + kStack);
  // What the switch takes: six registers, then where to go; behind it the stack is as after a call.
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(&fiber_main);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  f.sp = top;
  f.fake_stack = nullptr;
  f.state = State::ready;
}

Dim3 index_of(int thread, Dim3 dim) {
  const auto t = static_cast<unsigned>(thread);
  return {t % dim.x, t / dim.x % dim.y, t / dim.x / dim.y};
}

void resume(Machine& m, int thread) {
  m.current = thread;
  m.built.thread_idx = index_of(thread, m.built.block_dim);
  const Fiber& f = m.fibers[static_cast<size_t>(thread)];
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(&m.scheduler_fake_stack, stack_of(m, thread), kStack);
#endif
  lorry_simt_switch(&m.scheduler_sp, f.sp);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(m.scheduler_fake_stack, nullptr, nullptr);
#endif
}

// Whether a thread of the block ran.
bool take_turns(Machine& m) {
  bool progress = false;
  for (int i = 0; i < m.threads; ++i) {
    const int t = m.schedule == Schedule::forward ? i : m.threads - 1 - i;
    if (m.fibers[static_cast<size_t>(t)].state != State::ready) continue;
    progress = true;
    resume(m, t);
  }
  return progress;
}

// Lets all threads that wait at the barrier go on when there is nobody else. False: all are done.
bool open_barrier(Machine& m) {
  int waiting = 0;
  int done = 0;
  for (int t = 0; t < m.threads; ++t) {
    waiting += m.fibers[static_cast<size_t>(t)].state == State::at_block ? 1 : 0;
    done += m.fibers[static_cast<size_t>(t)].state == State::done ? 1 : 0;
  }
  if (done == m.threads) return false;
  LORRY_CHECK(waiting == m.threads,
              "block ({}, {}, {}): of {} threads {} wait at a barrier, {} have ended, the others "
              "wait for their warp",
              m.built.block_idx.x, m.built.block_idx.y, m.built.block_idx.z, m.threads, waiting,
              done);
  for (int t = 0; t < m.threads; ++t) m.fibers[static_cast<size_t>(t)].state = State::ready;
  return true;
}

void run_block(Machine& m, size_t shared_bytes) {
  std::memset(m.shared.data(), 0xff, shared_bytes);
  for (Warp& w : m.warps) w.arrived = 0;
  for (int t = 0; t < m.threads; ++t) prepare(m, t);
  do {
    while (take_turns(m)) {
    }
  } while (open_barrier(m));
}

}  // namespace

const Built& built() { return machine().built; }

void set_schedule(Schedule s) { machine().schedule = s; }

void run(Dim3 grid, Dim3 block, size_t shared_bytes, Body body, const void* args) {
  Machine& m = machine();
  LORRY_CHECK(!m.running, "a kernel within a kernel");
  m.threads = static_cast<int>(block.x * block.y * block.z);
  LORRY_CHECK(m.threads > 0 && m.threads % kWarp == 0 && m.threads <= kMaxThreads,
              "a block of {} threads", m.threads);
  LORRY_CHECK(grid.x > 0 && grid.y > 0 && grid.z > 0 && grid.y < 65536 && grid.z < 65536,
              "a grid of {} x {} x {}", grid.x, grid.y, grid.z);
  LORRY_CHECK(shared_bytes <= size_t{227} << 10, "{} bytes of shared memory", shared_bytes);
  m.running = true;
  m.shared.resize(shared_bytes + 16);
  m.body = body;
  m.args = args;
  m.built.block_dim = block;
  m.built.grid_dim = grid;
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        m.built.block_idx = {x, y, z};
        run_block(m, shared_bytes);
      }
    }
  }
  m.running = false;
}

void sync_threads() { wait(State::at_block); }

const Slot* exchange(const Slot& own) {
  Machine& m = machine();
  const int first = m.current / kWarp * kWarp;
  Warp& w = m.warps[static_cast<size_t>(m.current / kWarp)];
  auto& slots = w.slots[static_cast<size_t>(w.parity)];
  slots[static_cast<size_t>(m.current - first)] = own;
  if (++w.arrived < kWarp) {
    wait(State::at_warp);
    return slots.data();
  }
  w.arrived = 0;
  w.parity ^= 1;
  for (int t = first; t < first + kWarp; ++t) {
    m.fibers[static_cast<size_t>(t)].state = State::ready;
  }
  return slots.data();
}

int lane() { return machine().current % kWarp; }

void give_way() {
  Machine& m = machine();
  LORRY_CHECK(++m.gave_way <= 4 * kMaxThreads,
              "block ({}, {}, {}): threads wait at mbarriers, and nobody is left who would arrive",
              m.built.block_idx.x, m.built.block_idx.y, m.built.block_idx.z);
  to_scheduler(m);
}

void init(Barrier& b, int arrivals) { b = {arrivals, arrivals, 0, 0}; }

namespace {

void end_phase_if_complete(Barrier& b) {
  machine().gave_way = 0;
  LORRY_CHECK(b.missing >= 0, "more threads arrive at an mbarrier than it was made for");
  if (b.missing > 0 || b.bytes != 0) return;
  b.missing = b.arrivals;
  ++b.phase;
}

}  // namespace

void arrive(Barrier& b, int expected_bytes) {
  --b.missing;
  b.bytes += expected_bytes;
  end_phase_if_complete(b);
}

void receive(Barrier& b, int bytes) {
  b.bytes -= bytes;
  end_phase_if_complete(b);
}

void wait(const Barrier& b, uint32_t parity) {
  while (b.phase % 2 == parity) give_way();
}

void fail(const char* why) {
  const Dim3 at = machine().built.block_idx;
  std::fprintf(stderr, "block (%u, %u, %u): %s\n", at.x, at.y, at.z, why);
  std::abort();
}

std::byte* shared_memory() {
  auto* p = machine().shared.data();
  return p + (16 - reinterpret_cast<uintptr_t>(p) % 16) % 16;
}

}  // namespace lorry::simt
