#include "ops/cpu/probe.h"

#include <algorithm>
#include <chrono>

#include "base/memory.h"
#include "base/task_counters.h"
#include "ops/cpu/isa.h"

namespace lorry {

namespace {

double seconds_of(ThreadPool& pool, const auto& f) {
  const auto start = std::chrono::steady_clock::now();
  pool.run(f);
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// The best of several short runs: the probe asks for the limit, not for the average.
double best_of(int runs, const auto& f) {
  double best = 0;
  for (int i = 0; i < runs; ++i) best = std::max(best, f());
  return best;
}

double spin_rate(ThreadPool& pool, void (*spin)(int64_t, float*), double operations) {
  if (spin == nullptr) return 0;
  constexpr int64_t kIterations = 500'000;
  return best_of(5, [&] {
    const double t = seconds_of(pool, [&](int) {
      float sink = 0;
      spin(kIterations, &sink);
    });
    return operations * static_cast<double>(kIterations) * pool.size() / t * 1e-9;
  });
}

// Pieces [0, n), a node's own as far as it can: where it has written it reads. Seconds.
double each_piece(ThreadPool& pool, int64_t n, const auto& f) {
  TaskCounters tasks(pool);
  tasks.deal_by_node(1, n);
  return seconds_of(
      pool, [&](int thread) { tasks.work(thread, [&](int64_t piece, int64_t) { f(piece); }); });
}

double read_rate(ThreadPool& pool, const cpu::Kernels& kernels) {
  constexpr int64_t kBytes = int64_t{512} << 20;
  constexpr int64_t kPage = 4096;
  // Small enough that a slow thread leaves its share to the others.
  constexpr int64_t kPiece = int64_t{1} << 20;
  const Buffer buffer(static_cast<size_t>(kBytes));
  // Memory that was never written is one shared page of zeros.
  each_piece(pool, kBytes / kPiece, [&](int64_t piece) {
    for (int64_t i = 0; i < kPiece; i += kPage) {
      *reinterpret_cast<volatile char*>(buffer.data() + piece * kPiece + i) = 1;
    }
  });
  return best_of(3, [&] {
    const double t = each_piece(pool, kBytes / kPiece, [&](int64_t piece) {
      float sink = 0;
      kernels.read(buffer.data() + piece * kPiece, kPiece, &sink);
    });
    return static_cast<double>(kBytes) / t * 1e-9;
  });
}

}  // namespace

Probe probe_machine(ThreadPool& pool, Isa isa) {
  const cpu::Kernels& kernels = cpu::kernels_of(isa);
  return {.bf16_gflops = spin_rate(pool, kernels.spin, kernels.spin_flops),
          .int8_gops = spin_rate(pool, kernels.spin_int8, kernels.spin_int8_ops),
          .read_gb_s = read_rate(pool, kernels)};
}

}  // namespace lorry
