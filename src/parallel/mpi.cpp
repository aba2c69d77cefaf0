// OpenMPI by its binary interface, which has been the same since version 3 (libmpi.so.40): handles
// are addresses of objects in the library. Only point-to-point messages are used: sums are ours, in
// the order of the ranks, and waiting leaves the core to others.
#include "parallel/mpi.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>

#include <dlfcn.h>

#include "base/error.h"
#include "parallel/rows.h"

namespace lorry {

namespace {

constexpr const char* kLibrary = "libmpi.so.40";
constexpr int kThreadSerialized = 2;  // MPI_THREAD_SERIALIZED
constexpr int kTypeShared = 0;        // MPI_COMM_TYPE_SHARED
constexpr int kTag = 1;
constexpr size_t kPartBytes = size_t{1} << 20;
// Of an all_reduce among more than two ranks: from here on it is cheaper to sum in shares.
constexpr size_t kShareBytes = size_t{32} << 10;
// The first message of a broadcast and of an answer holds the length and, mostly, all of it.
constexpr size_t kPlanBlock = 1024;
constexpr size_t kAnswerBlock = 64;
constexpr auto kSpin = std::chrono::microseconds(300);
constexpr auto kNap = std::chrono::microseconds(100);
// Messages move only while a rank looks, but whoever has waited so long waits for rank 0 to have
// work.
constexpr auto kIdle = std::chrono::seconds(1);
constexpr auto kIdleNap = std::chrono::milliseconds(4);

using Handle = void*;

struct Library {
  int (*init)(int*, char***, int, int*) = nullptr;
  int (*finalize)() = nullptr;
  int (*abort)(Handle, int) = nullptr;
  int (*rank)(Handle, int*) = nullptr;
  int (*size)(Handle, int*) = nullptr;
  int (*split_type)(Handle, int, int, Handle, Handle*) = nullptr;
  int (*isend)(const void*, int, Handle, int, int, Handle, Handle*) = nullptr;
  int (*irecv)(void*, int, Handle, int, int, Handle, Handle*) = nullptr;
  int (*testall)(int, Handle*, int*, void*) = nullptr;
  Handle world = nullptr, byte = nullptr, no_info = nullptr;
};

// OpenMPI asks the receiver before it sends more than 64 KiB over TCP, and sends the rest in small
// pieces while both sides look: sums of more than that took up to twice as long. What is set
// already (mpirun --mca) stays.
void send_parts_at_once() {
  const std::string bytes = std::to_string(kPartBytes + 4096);
  for (const char* name : {"OMPI_MCA_btl_tcp_eager_limit", "OMPI_MCA_btl_tcp_rndv_eager_limit",
                           "OMPI_MCA_btl_tcp_max_send_size"}) {
    setenv(name, bytes.c_str(), 0);
  }
}

Library load_library() {
  // Global: its own plugins look for its symbols.
  void* handle = dlopen(kLibrary, RTLD_NOW | RTLD_GLOBAL);
  if (handle == nullptr) {
    fail(
        Code::unavailable,
        "this process was started by mpirun, but {} cannot be loaded: {}; install OpenMPI (Debian: "
        "libopenmpi3), or use --num-shard, which needs no MPI on one host",
        kLibrary, dlerror());
  }
  Library l;
  const auto find = [&]<class T>(T& to, const char* name) {
    void* symbol = dlsym(handle, name);
    if (symbol == nullptr) {
      fail(Code::unavailable, "{} has no {}: expected OpenMPI 3 to 5", kLibrary, name);
    }
    to = reinterpret_cast<T>(symbol);
  };
  find(l.init, "MPI_Init_thread");
  find(l.finalize, "MPI_Finalize");
  find(l.abort, "MPI_Abort");
  find(l.rank, "MPI_Comm_rank");
  find(l.size, "MPI_Comm_size");
  find(l.split_type, "MPI_Comm_split_type");
  find(l.isend, "MPI_Isend");
  find(l.irecv, "MPI_Irecv");
  find(l.testall, "MPI_Testall");
  find(l.world, "ompi_mpi_comm_world");
  find(l.byte, "ompi_mpi_byte");
  find(l.no_info, "ompi_mpi_info_null");
  return l;
}

class MpiComm final : public Comm {
 public:
  MpiComm() : mpi_(load_library()) {
    send_parts_at_once();
    int provided = 0;
    if (mpi_.init(nullptr, nullptr, kThreadSerialized, &provided) != 0 ||
        provided < kThreadSerialized) {
      fail(Code::unavailable, "MPI does not start, or not for calls of more than one thread");
    }
    mpi_.rank(mpi_.world, &rank_);
    mpi_.size(mpi_.world, &size_);
    Handle host = nullptr;
    mpi_.split_type(mpi_.world, kTypeShared, 0, mpi_.no_info, &host);
    mpi_.size(host, &local_size_);
    send_.resize(kPartBytes);
    receive_.resize(kPartBytes * static_cast<size_t>(size_));
  }

  // Without end() something went wrong: the others would wait for this rank for ever.
  ~MpiComm() override {
    if (!ended_) mpi_.abort(mpi_.world, 1);
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  int local_size() const override { return local_size_; }
  int64_t bytes_sent() const override { return bytes_sent_; }

  void end() override {
    ended_ = true;
    mpi_.finalize();
  }

  void all_reduce(Tensor x) override {
    each_part(x, kPartBytes, [&](const Tensor& part) {
      const auto bytes = static_cast<size_t>(part.shape.size()) * sizeof(float);
      copy_to(send_.data(), part);
      size_ > 2 && bytes >= kShareBytes ? sum_shares(part, bytes) : sum_all(part, bytes);
    });
  }

  void gather(Tensor whole, Tensor part, std::span<const int64_t> widths) override {
    if (rank_ != 0) {
      each_part(part, kPartBytes, [&](const Tensor& p) {
        copy_to(send_.data(), p);
        const auto bytes = static_cast<size_t>(p.shape.size()) * sizeof(float);
        send(send_.data(), bytes, 0);
        wait();
        bytes_sent_ += static_cast<int64_t>(bytes);
      });
      return;
    }
    copy_to(columns(whole, 0, widths[0]), part);
    int64_t column = widths[0];
    for (int r = 1; r < size_; ++r) {
      const int64_t width = widths[static_cast<size_t>(r)];
      each_part(columns(whole, column, width), kPartBytes, [&](const Tensor& p) {
        receive(receive_.data(), static_cast<size_t>(p.shape.size()) * sizeof(float), r);
        wait();
        add_from(p, receive_.data(), true);
      });
      column += width;
    }
  }

  void broadcast(Bytes& message) override {
    std::array<std::byte, kPlanBlock> block{};
    if (rank_ == 0) {
      put(block, message);
      for (int r = 1; r < size_; ++r) {
        send(block.data(), block.size(), r);
        send_rest(message, block.size(), r);
      }
      return wait();
    }
    receive(block.data(), block.size(), 0);
    wait();
    message = take(block, 0);
  }

  std::vector<Bytes> collect(std::span<const std::byte> message) override {
    LORRY_CHECK(message.size() <= kMaxCollected, "a message of {} bytes", message.size());
    std::array<std::byte, kAnswerBlock> block{};
    if (rank_ != 0) {
      put(block, message);
      send(block.data(), block.size(), 0);
      send_rest(message, block.size(), 0);
      wait();
      return {};
    }
    std::vector<Bytes> all;
    all.emplace_back(message.begin(), message.end());
    std::vector<std::array<std::byte, kAnswerBlock>> blocks(static_cast<size_t>(size_));
    for (int r = 1; r < size_; ++r) {
      receive(blocks[static_cast<size_t>(r)].data(), kAnswerBlock, r);
    }
    wait();
    for (int r = 1; r < size_; ++r) all.push_back(take(blocks[static_cast<size_t>(r)], r));
    return all;
  }

 private:
  std::byte* received(int rank) { return receive_.data() + static_cast<size_t>(rank) * kPartBytes; }

  void send(const std::byte* from, size_t bytes, int to) {
    if (bytes == 0) return;
    mpi_.isend(from, static_cast<int>(bytes), mpi_.byte, to, kTag, mpi_.world,
               &requests_.emplace_back());
  }
  void receive(std::byte* to, size_t bytes, int from) {
    if (bytes == 0) return;
    mpi_.irecv(to, static_cast<int>(bytes), mpi_.byte, from, kTag, mpi_.world,
               &requests_.emplace_back());
  }

  // For all that was begun. Whoever waits long leaves the core alone: a follower may be idle for
  // hours.
  void wait() {
    const auto start = std::chrono::steady_clock::now();
    for (int done = 0; !requests_.empty();) {
      mpi_.testall(static_cast<int>(requests_.size()), requests_.data(), &done, nullptr);
      if (done != 0) break;
      const auto waited = std::chrono::steady_clock::now() - start;
      if (waited < kSpin) {
        std::this_thread::yield();
      } else if (waited < kIdle) {
        std::this_thread::sleep_for(kNap);
      } else {
        std::this_thread::sleep_for(kIdleNap);
      }
    }
    requests_.clear();
  }

  // Everybody gets everything and sums it.
  void sum_all(const Tensor& part, size_t bytes) {
    for (int r = 0; r < size_; ++r) {
      if (r == rank_) continue;
      receive(received(r), bytes, r);
      send(send_.data(), bytes, r);
      bytes_sent_ += static_cast<int64_t>(bytes);
    }
    wait();
    for (int r = 0; r < size_; ++r) {
      add_in_order(part, r == rank_ ? send_.data() : received(r), r, rank_);
    }
  }

  // Each rank sums a share of the values, and gives the sums to all.
  void sum_shares(const Tensor& part, size_t bytes) {
    const auto n = static_cast<int64_t>(bytes / sizeof(float));
    const auto share = [&](int r) {
      const int64_t each = (n + size_ - 1) / size_;
      const int64_t first = std::min(n, r * each);
      return std::pair(static_cast<size_t>(first) * sizeof(float),
                       static_cast<size_t>(std::min(n, first + each) - first) * sizeof(float));
    };
    const auto [own_at, own_bytes] = share(rank_);
    for (int r = 0; r < size_; ++r) {
      if (r == rank_) continue;
      const auto [at, share_bytes] = share(r);
      receive(received(r), own_bytes, r);
      send(send_.data() + at, share_bytes, r);
      bytes_sent_ += static_cast<int64_t>(share_bytes + own_bytes);
    }
    wait();
    std::memcpy(received(rank_), send_.data() + own_at, own_bytes);
    const auto values = static_cast<int64_t>(own_bytes / sizeof(float));
    const Tensor sum = view(send_.data() + own_at, Dtype::f32, {1, values});
    for (int r = 0; r < size_; ++r) add_from(sum, received(r), r == 0);
    for (int r = 0; r < size_; ++r) {
      if (r == rank_) continue;
      const auto [at, share_bytes] = share(r);
      receive(send_.data() + at, share_bytes, r);
      send(send_.data() + own_at, own_bytes, r);
    }
    wait();
    add_from(part, send_.data(), true);
  }

  template <size_t N>
  static void put(std::array<std::byte, N>& block, std::span<const std::byte> message) {
    const uint64_t size = message.size();
    std::memcpy(block.data(), &size, sizeof size);
    std::copy_n(message.data(), std::min(message.size(), N - sizeof size),
                block.data() + sizeof size);
  }
  // What the block of `block_bytes` had no room for.
  void send_rest(std::span<const std::byte> message, size_t block_bytes, int to) {
    const size_t first = std::min(message.size(), block_bytes - sizeof(uint64_t));
    for (size_t at = first; at < message.size(); at += kPartBytes) {
      send(message.data() + at, std::min(kPartBytes, message.size() - at), to);
    }
  }
  template <size_t N>
  Bytes take(const std::array<std::byte, N>& block, int from) {
    uint64_t size = 0;
    std::memcpy(&size, block.data(), sizeof size);
    Bytes message(size);
    const size_t first = std::min<size_t>(size, N - sizeof size);
    std::copy_n(block.data() + sizeof size, first, message.data());
    for (size_t at = first; at < size; at += kPartBytes) {
      receive(message.data() + at, std::min<size_t>(kPartBytes, size - at), from);
    }
    wait();
    return message;
  }

  const Library mpi_;
  int rank_ = 0, size_ = 1, local_size_ = 1;
  bool ended_ = false;
  Bytes send_, receive_;
  std::vector<Handle> requests_;
  int64_t bytes_sent_ = 0;
};

}  // namespace

std::unique_ptr<Comm> make_mpi_comm() { return std::make_unique<MpiComm>(); }

std::string mpi_library() {
  void* handle = dlopen(kLibrary, RTLD_LAZY | RTLD_LOCAL);
  if (handle == nullptr) return "";
  dlclose(handle);
  return kLibrary;
}

}  // namespace lorry
