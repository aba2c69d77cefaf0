#include "parallel/one_host.h"

#include <cstring>
#include <string>
#include <utility>

#include <fcntl.h>
#include <unistd.h>

#include "base/error.h"
#include "parallel/shared_memory.h"

namespace lorry {

namespace {

// Where the memory of rank 0 is; process 0: it has none.
struct Place {
  int64_t process = 0;
  int64_t descriptor = -1;
  uint64_t token = 0;
};

class OneHostComm final : public Comm {
 public:
  OneHostComm(std::unique_ptr<Comm> messages, std::unique_ptr<Comm> memory)
      : messages_(std::move(messages)), memory_(std::move(memory)) {}

  int rank() const override { return memory_->rank(); }
  int size() const override { return memory_->size(); }
  int local_size() const override { return memory_->local_size(); }
  void all_reduce(Tensor x) override { memory_->all_reduce(x); }
  std::byte* common_memory(size_t bytes) override { return memory_->common_memory(bytes); }
  std::span<const Tensor> parts(const Tensor& y) override { return memory_->parts(y); }
  void gather(Tensor whole, Tensor part, std::span<const int64_t> widths) override {
    memory_->gather(whole, part, widths);
  }
  void broadcast(Bytes& message) override { memory_->broadcast(message); }
  std::vector<Bytes> collect(std::span<const std::byte> message) override {
    return memory_->collect(message);
  }
  void end() override { messages_->end(); }
  int64_t bytes_sent() const override { return memory_->bytes_sent(); }

 private:
  const std::unique_ptr<Comm> messages_;  // it alone tells others when this rank goes without end()
  const std::unique_ptr<Comm> memory_;
};

// Null: no room.
std::shared_ptr<SharedMemory> create(int ranks) {
  try {
    return SharedMemory::create(ranks);
  } catch (const Error&) {
    return nullptr;
  }
}

// Null: it cannot be opened, or is another one: processes may have numbers of their own.
std::shared_ptr<SharedMemory> open_at(const Place& place) {
  if (place.process == 0) return nullptr;
  const std::string path = fmt::format("/proc/{}/fd/{}", place.process, place.descriptor);
  const int descriptor = open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (descriptor < 0) return nullptr;
  try {
    auto memory = SharedMemory::attach(descriptor);
    return memory->token() == place.token ? memory : nullptr;
  } catch (const Error&) {
    return nullptr;
  }
}

}  // namespace

std::unique_ptr<Comm> meet_in_shared_memory(Comm& messages) {
  if (messages.size() == 1 || messages.local_size() != messages.size()) return nullptr;
  std::shared_ptr<SharedMemory> memory;
  Place place;
  if (messages.rank() == 0) {
    memory = create(messages.size());
    if (memory != nullptr) place = {getpid(), memory->descriptor(), memory->token()};
  }
  Bytes told(sizeof place);
  std::memcpy(told.data(), &place, sizeof place);
  messages.broadcast(told);
  if (messages.rank() != 0) {
    std::memcpy(&place, told.data(), sizeof place);
    memory = open_at(place);
  }
  const bool all = least_of(messages, memory != nullptr ? 1 : 0) == 1;
  if (!all) return nullptr;
  return make_shared_memory_comm(std::move(memory), messages.rank());
}

std::unique_ptr<Comm> share_one_host(std::unique_ptr<Comm> messages) {
  auto memory = meet_in_shared_memory(*messages);
  if (memory == nullptr) return messages;
  return std::make_unique<OneHostComm>(std::move(messages), std::move(memory));
}

}  // namespace lorry
