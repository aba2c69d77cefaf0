#include <algorithm>
#include <cstring>

#include "parallel/comm.h"

namespace lorry {

namespace {

class SoloComm final : public Comm {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  int local_size() const override { return 1; }
  void all_reduce(Tensor) override {}
  void gather(Tensor, Tensor, std::span<const int64_t>) override {}
  void broadcast(Bytes&) override {}
  std::vector<Bytes> collect(std::span<const std::byte> message) override {
    return {Bytes(message.begin(), message.end())};
  }
  int64_t bytes_sent() const override { return 0; }
};

}  // namespace

std::unique_ptr<Comm> make_solo_comm() { return std::make_unique<SoloComm>(); }

int64_t least_of(Comm& comm, int64_t value) {
  Bytes least(sizeof value);
  for (const Bytes& b : comm.collect(std::as_bytes(std::span(&value, 1)))) {
    int64_t other = 0;
    std::memcpy(&other, b.data(), sizeof other);
    value = std::min(value, other);
  }
  std::memcpy(least.data(), &value, sizeof value);
  comm.broadcast(least);
  std::memcpy(&value, least.data(), sizeof value);
  return value;
}

}  // namespace lorry
