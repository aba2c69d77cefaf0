#include "parallel/shared_memory.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <climits>
#include <cstring>
#include <ctime>
#include <new>
#include <random>
#include <thread>
#include <utility>

#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cpu_relax.h"
#include "base/error.h"
#include "parallel/rows.h"

namespace lorry {

namespace {

constexpr uint32_t kMagic = 0x6c72726d;
constexpr size_t kSlotBytes = size_t{256} << 10;  // two of a rank stay in its L2 cache
// Between two exchanges of a step there is about as much work on every rank: so a rank first waits
// on its core, then asleep.
constexpr auto kSpin = std::chrono::microseconds(300);
constexpr int kPausesPerClockRead = 64;

struct alignas(64) RankState {
  std::atomic<uint32_t> arrived{0};  // the last exchange whose data is in its slot
  std::atomic<uint32_t> sleepers{0};
};

struct Header {
  uint32_t magic = kMagic;
  int32_t ranks = 0;
  uint64_t token = 0;
};

constexpr size_t header_bytes(int ranks) {
  return (sizeof(Header) + 63) / 64 * 64 + static_cast<size_t>(ranks) * sizeof(RankState);
}

constexpr size_t all_bytes(int ranks) {
  return (header_bytes(ranks) + 4095) / 4096 * 4096 + static_cast<size_t>(ranks) * 2 * kSlotBytes;
}

static_assert(std::atomic<uint32_t>::is_always_lock_free);

void futex_wait(std::atomic<uint32_t>& word, uint32_t seen) {
  // Looks again now and then: a wake can be lost with the rank that owed it.
  const timespec timeout{0, 100'000'000};
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT, seen, &timeout, nullptr, 0);
}

void futex_wake(std::atomic<uint32_t>& word) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

class SharedMemoryComm final : public Comm {
 public:
  SharedMemoryComm(std::shared_ptr<SharedMemory> memory, int rank)
      : memory_(std::move(memory)), rank_(rank), size_(memory_->ranks()) {
    LORRY_CHECK(rank >= 0 && rank < size_, "rank {} of {}", rank, size_);
    parts_.resize(static_cast<size_t>(size_));
  }
  ~SharedMemoryComm() override {
    if (common_ != nullptr) munmap(common_, common_bytes_ * static_cast<size_t>(size_));
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  int local_size() const override { return size_; }
  int64_t bytes_sent() const override { return bytes_sent_; }

  void all_reduce(Tensor x) override {
    each_part(x, kSlotBytes, [&](const Tensor& part) {
      begin();
      copy_to(slot(rank_), part);
      publish(part);
      for (int r = 0; r < size_; ++r) {
        wait(r, exchange_);
        add_in_order(part, slot(r), r, rank_);
      }
    });
  }

  std::byte* common_memory(size_t bytes) override {
    LORRY_CHECK(common_ == nullptr, "common memory is there");
    common_bytes_ = (bytes + 4095) / 4096 * 4096;
    // All have attached who have arrived here.
    begin();
    publish({});
    for (int r = 0; r < size_; ++r) wait(r, exchange_);
    common_ = memory_->map_more(common_bytes_);
    return common_ + static_cast<size_t>(rank_) * common_bytes_;
  }

  std::span<const Tensor> parts(const Tensor& y) override {
    std::byte* own = common_ + static_cast<size_t>(rank_) * common_bytes_;
    if (common_ == nullptr || y.data < own || y.data >= own + common_bytes_) return Comm::parts(y);
    ++exchange_;
    publish(y);
    for (int r = 0; r < size_; ++r) {
      wait(r, exchange_);
      Tensor& part = parts_[static_cast<size_t>(r)];
      part = y;
      part.data = common_ + static_cast<size_t>(r) * common_bytes_ + (y.data - own);
    }
    return parts_;
  }

  void gather(Tensor whole, Tensor part, std::span<const int64_t> widths) override {
    const int64_t widest = *std::max_element(widths.begin(), widths.end());
    const int64_t n_cols = std::min(widest, static_cast<int64_t>(kSlotBytes / sizeof(float)));
    const int64_t n_rows = static_cast<int64_t>(kSlotBytes / sizeof(float)) / n_cols;
    for (int64_t c = 0; c < widest; c += n_cols) {
      for (int64_t r = 0; r < part.rows(); r += n_rows) {
        gather_part(whole, part, widths, {r, std::min(n_rows, part.rows() - r), c, n_cols});
      }
    }
  }

  void broadcast(Bytes& message) override {
    uint64_t size = message.size();
    uint64_t done = 0;
    do {
      begin();
      if (rank_ == 0) {
        const auto n = std::min<uint64_t>(size - done, kSlotBytes - sizeof size);
        std::memcpy(slot(0), &size, sizeof size);
        if (n > 0) std::memcpy(slot(0) + sizeof size, message.data() + done, n);
        publish({});
        done += n;
        continue;
      }
      publish({});
      wait(0, exchange_);
      std::memcpy(&size, slot(0), sizeof size);
      message.resize(size);
      const auto n = std::min<uint64_t>(size - done, kSlotBytes - sizeof size);
      if (n > 0) std::memcpy(message.data() + done, slot(0) + sizeof size, n);
      done += n;
    } while (done < size);
  }

  std::vector<Bytes> collect(std::span<const std::byte> message) override {
    LORRY_CHECK(message.size() <= kMaxCollected, "a message of {} bytes", message.size());
    begin();
    const uint64_t size = message.size();
    std::memcpy(slot(rank_), &size, sizeof size);
    if (size > 0) std::memcpy(slot(rank_) + sizeof size, message.data(), size);
    publish({});
    std::vector<Bytes> all;
    for (int r = 0; rank_ == 0 && r < size_; ++r) {
      wait(r, exchange_);
      uint64_t n = 0;
      std::memcpy(&n, slot(r), sizeof n);
      all.emplace_back(slot(r) + sizeof n, slot(r) + sizeof n + n);
    }
    return all;
  }

 private:
  RankState& state(int rank) const {
    return reinterpret_cast<RankState*>(memory_->data() + (sizeof(Header) + 63) / 64 * 64)[rank];
  }
  // Of the current exchange.
  std::byte* slot(int rank) const {
    const size_t index = static_cast<size_t>(rank) * 2 + exchange_ % 2;
    return memory_->data() + (header_bytes(size_) + 4095) / 4096 * 4096 + index * kSlotBytes;
  }

  // Rows, and columns of each rank's part as far as it has them.
  struct Block {
    int64_t row, n_rows, column, n_cols;
    Tensor of(const Tensor& t, int64_t width) const {
      const int64_t first = std::min(column, width);
      return rows(columns(t, first, std::min(n_cols, width - first)), row, n_rows);
    }
  };

  void gather_part(const Tensor& whole, const Tensor& part, std::span<const int64_t> widths,
                   const Block& block) {
    const Tensor own = block.of(part, part.cols());
    begin();
    if (rank_ != 0) copy_to(slot(rank_), own);
    publish(rank_ == 0 ? Tensor{} : own);
    int64_t column = 0;
    for (int r = 0; rank_ == 0 && r < size_; ++r) {
      const int64_t width = widths[static_cast<size_t>(r)];
      const Tensor to = block.of(columns(whole, column, width), width);
      column += width;
      if (r == 0) {
        copy_to(to, own);
      } else {
        wait(r, exchange_);
        add_from(to, slot(r), true);
      }
    }
  }

  // The slot that this exchange writes was last read in the one before the last, which all have
  // finished once they have begun the last.
  void begin() {
    for (int r = 0; r < size_; ++r) wait(r, exchange_);
    ++exchange_;
  }

  void publish(const Tensor& sent) {
    if (sent) bytes_sent_ += sent.shape.size() * int64_t{sizeof(float)};
    RankState& own = state(rank_);
    own.arrived.store(exchange_);
    if (own.sleepers.load() != 0) futex_wake(own.arrived);
  }

  void wait(int rank, uint32_t exchange) const {
    RankState& other = state(rank);
    const auto there = [&] {
      return static_cast<int32_t>(other.arrived.load(std::memory_order_acquire) - exchange) >= 0;
    };
    const auto deadline = std::chrono::steady_clock::now() + kSpin;
    do {
      for (int i = 0; i < kPausesPerClockRead; ++i) {
        if (there()) return;
        cpu_relax();
      }
      std::this_thread::yield();
    } while (std::chrono::steady_clock::now() < deadline);
    while (!there()) {
      other.sleepers.fetch_add(1);
      const uint32_t seen = other.arrived.load();
      if (static_cast<int32_t>(seen - exchange) < 0) futex_wait(other.arrived, seen);
      other.sleepers.fetch_sub(1);
    }
  }

  const std::shared_ptr<SharedMemory> memory_;
  const int rank_;
  const int size_;
  std::byte* common_ = nullptr;  // of all ranks
  size_t common_bytes_ = 0;      // of one
  std::vector<Tensor> parts_;
  uint32_t exchange_ = 0;
  int64_t bytes_sent_ = 0;
};

}  // namespace

SharedMemory::SharedMemory(int descriptor, size_t bytes) : descriptor_(descriptor), bytes_(bytes) {
  void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
  if (at == MAP_FAILED) {
    const int error = errno;
    close(descriptor);
    fail(Code::over_capacity, "cannot map {} bytes of shared memory: {}", bytes,
         std::strerror(error));
  }
  data_ = static_cast<std::byte*>(at);
}

std::shared_ptr<SharedMemory> SharedMemory::create(int ranks) {
  LORRY_CHECK(ranks >= 1, "{} ranks", ranks);
  const int fd = memfd_create("lorry-ranks", 0);
  const size_t bytes = all_bytes(ranks);
  if (fd < 0 || ftruncate(fd, static_cast<off_t>(bytes)) != 0) {
    const int error = errno;
    if (fd >= 0) close(fd);
    fail(Code::over_capacity, "cannot make {} bytes of shared memory for {} ranks: {}", bytes,
         ranks, std::strerror(error));
  }
  std::shared_ptr<SharedMemory> m(new SharedMemory(fd, bytes));
  auto* header = new (m->data_) Header;
  header->ranks = ranks;
  std::random_device random;
  header->token = uint64_t{random()} << 32 | random();
  for (int r = 0; r < ranks; ++r) {
    new (m->data_ + (sizeof(Header) + 63) / 64 * 64 + static_cast<size_t>(r) * sizeof(RankState))
        RankState;
  }
  return m;
}

std::shared_ptr<SharedMemory> SharedMemory::attach(int descriptor) {
  struct stat info{};
  if (fstat(descriptor, &info) != 0 || info.st_size < static_cast<off_t>(all_bytes(1))) {
    close(descriptor);
    fail(Code::invalid_argument, "descriptor {} is no memory of a group of ranks", descriptor);
  }
  std::shared_ptr<SharedMemory> m(new SharedMemory(descriptor, static_cast<size_t>(info.st_size)));
  const auto* header = reinterpret_cast<const Header*>(m->data_);
  if (header->magic != kMagic || all_bytes(header->ranks) != m->bytes_) {
    fail(Code::invalid_argument, "descriptor {} is no memory of a group of ranks", descriptor);
  }
  return m;
}

SharedMemory::~SharedMemory() {
  munmap(data_, bytes_);
  close(descriptor_);
}

std::byte* SharedMemory::map_more(size_t bytes) const {
  const size_t more = bytes * static_cast<size_t>(ranks());
  void* at = MAP_FAILED;
  if (ftruncate(descriptor_, static_cast<off_t>(bytes_ + more)) == 0) {
    at = mmap(nullptr, more, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor_,
              static_cast<off_t>(bytes_));
  }
  if (at == MAP_FAILED) {
    fail(Code::over_capacity, "cannot make {} bytes of shared memory for {} ranks: {}", more,
         ranks(), std::strerror(errno));
  }
  return static_cast<std::byte*>(at);
}

int SharedMemory::ranks() const { return reinterpret_cast<const Header*>(data_)->ranks; }
uint64_t SharedMemory::token() const { return reinterpret_cast<const Header*>(data_)->token; }

std::unique_ptr<Comm> make_shared_memory_comm(std::shared_ptr<SharedMemory> memory, int rank) {
  return std::make_unique<SharedMemoryComm>(std::move(memory), rank);
}

}  // namespace lorry
