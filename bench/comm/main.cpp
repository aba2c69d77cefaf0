// bench_comm: what a sum over ranks takes: in shared memory where they are on one host, by our
// messages over MPI, and by MPI_Allreduce, whose order of adding is its own. For mpirun -np N. All
// sum the same values; the first two must agree bit by bit.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include <CLI/CLI.hpp>
#include <dlfcn.h>

#include "base/error.h"
#include "parallel/mpi.h"
#include "parallel/one_host.h"

namespace lorry::bench {
namespace {

constexpr int64_t kColumns = 2048;

struct Flags {
  std::vector<int64_t> kib{8, 32, 128, 512, 2048, 8192};
  double seconds = 0.2;
};

// MPI_Allreduce in place. The library is loaded: the comm has done it.
class MpiSum {
 public:
  MpiSum() {
    call_ = reinterpret_cast<Call>(find("MPI_Allreduce"));
    type_ = find("ompi_mpi_float");
    op_ = find("ompi_mpi_op_sum");
    world_ = find("ompi_mpi_comm_world");
  }
  void operator()(std::vector<float>& x) const {
    void* in_place = reinterpret_cast<void*>(1);  // MPI_IN_PLACE
    call_(in_place, x.data(), static_cast<int>(x.size()), type_, op_, world_);
  }

 private:
  using Call = int (*)(const void*, void*, int, void*, void*, void*);
  static void* find(const char* name) {
    void* at = dlsym(RTLD_DEFAULT, name);
    if (at == nullptr) fail(Code::unavailable, "MPI has no {}", name);
    return at;
  }
  Call call_;
  void *type_, *op_, *world_;
};

using Sum = std::function<void(std::vector<float>&)>;

Sum sum_of(Comm& comm) {
  return [&comm](std::vector<float>& x) {
    const auto n = static_cast<int64_t>(x.size());
    comm.all_reduce(view(x.data(), Dtype::f32, {n / kColumns, kColumns}));
  };
}

std::vector<float> values_of(int rank, int64_t bytes) {
  std::vector<float> x(static_cast<size_t>(bytes / 4));
  const auto phase = static_cast<float>(rank);
  for (size_t i = 0; i < x.size(); ++i) x[i] = std::sin(static_cast<float>(i + 1) * 0.37F + phase);
  return x;
}

double seconds_of(const std::function<void()>& f) {
  const auto start = std::chrono::steady_clock::now();
  f();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Microseconds a call: the median of batches. All ranks make as many calls, as rank 0 counts them.
double time_of(Comm& comm, const Sum& sum, int64_t bytes, double seconds) {
  constexpr int kBatches = 9;
  std::vector<float> x(static_cast<size_t>(bytes / 4), 0.0F);
  const double once = seconds_of([&] {
    for (int i = 0; i < 10; ++i) sum(x);
  });
  const auto wanted = static_cast<int64_t>(seconds / kBatches / (once / 10));
  const int64_t calls = least_of(comm, std::clamp<int64_t>(wanted, 1, 20000));
  std::vector<double> each;
  for (int b = 0; b < kBatches; ++b) {
    each.push_back(1e6 / static_cast<double>(calls) * seconds_of([&] {
                     for (int64_t i = 0; i < calls; ++i) sum(x);
                   }));
  }
  std::nth_element(each.begin(), each.begin() + kBatches / 2, each.end());
  return each[kBatches / 2];
}

int run(const Flags& flags) {
  const auto messages = make_mpi_comm();
  const auto memory = meet_in_shared_memory(*messages);
  const MpiSum mpi;
  const bool tells = messages->rank() == 0;
  if (tells) {
    std::printf("%d ranks, microseconds a sum\n%8s %14s %14s %14s %8s\n", messages->size(), "KiB",
                "shared memory", "our messages", "MPI_Allreduce", "other");
  }
  for (const int64_t kib : flags.kib) {
    const int64_t bytes = kib << 10;
    std::vector<float> ours = values_of(messages->rank(), bytes);
    std::vector<float> sent = ours, theirs = ours;
    sum_of (*messages)(sent);
    mpi(theirs);
    if (memory != nullptr) {
      sum_of (*memory)(ours);
      if (std::memcmp(ours.data(), sent.data(), static_cast<size_t>(bytes)) != 0) {
        fail(Code::internal, "{} KiB: messages and shared memory give different sums", kib);
      }
    }
    double other = 0;
    for (size_t i = 0; i < sent.size(); ++i) other += sent[i] != theirs[i] ? 1 : 0;
    const double a =
        memory == nullptr ? 0 : time_of(*messages, sum_of(*memory), bytes, flags.seconds);
    const double b = time_of(*messages, sum_of(*messages), bytes, flags.seconds);
    const double c = time_of(*messages, mpi, bytes, flags.seconds);
    if (!tells) continue;
    std::printf("%8ld %14.1f %14.1f %14.1f %7.1f%%\n", static_cast<long>(kib), a, b, c,
                100 * other / static_cast<double>(sent.size()));
    std::fflush(stdout);
  }
  if (tells) std::printf("other: values of MPI_Allreduce that are not the sum in order of ranks\n");
  messages->end();
  return 0;
}

}  // namespace
}  // namespace lorry::bench

int main(int argc, char** argv) {
  CLI::App app{"What a sum over ranks takes. Example: mpirun -np 2 bench_comm"};
  lorry::bench::Flags flags;
  app.add_option("--kib", flags.kib, "Sizes of the sums")->check(CLI::PositiveNumber);
  app.add_option("--seconds", flags.seconds, "For each size and way")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  try {
    return lorry::bench::run(flags);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "bench_comm: %s\n", e.what());
    return 1;
  }
}
