#include "ops/cuda/memory.h"

#include <algorithm>
#include <cstring>
#include <mutex>

#include "base/error.h"

namespace lorry::cuda {

namespace {

constexpr size_t kAlign = 256;
constexpr size_t kFirstChunk = size_t{4} << 20;
constexpr size_t kMovePart = size_t{16} << 20;

size_t aligned(size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

}  // namespace

CudaMemory::CudaMemory() : stream_(make_stream()), copies_(make_stream()) {}

CudaMemory::~CudaMemory() {
  wait(stream_);
  free_stream(stream_);
  free_stream(copies_);
}

std::byte* CudaMemory::allocate(size_t bytes) {
  auto* p = static_cast<std::byte*>(allocate_device(std::max<size_t>(1, bytes)));
  if (p == nullptr) {
    fail(Code::over_capacity, "the GPU has no room for {} bytes; {} are free", bytes, available());
  }
  cuda::clear(copies_, p, bytes, bytes, 1);
  wait(copies_);
  const std::unique_lock lock(mutex_);
  blocks_[p] = bytes;
  return p;
}

void CudaMemory::release(std::byte* block) noexcept {
  wait(stream_);
  {
    const std::unique_lock lock(mutex_);
    blocks_.erase(block);
  }
  free_device(block);
}

bool CudaMemory::contains(const void* p) const {
  const std::shared_lock lock(mutex_);
  const auto* at = static_cast<const std::byte*>(p);
  auto block = blocks_.upper_bound(at);
  if (block == blocks_.begin()) return false;
  --block;
  return at < block->first + block->second;
}

void CudaMemory::write(std::byte* to, const std::byte* from, size_t bytes) {
  copy_in(copies_, to, from, bytes);
  wait(copies_);
}

void CudaMemory::read(std::byte* to, const std::byte* from, size_t bytes) const {
  copy_out(stream_, to, from, bytes);
  wait(stream_);
}

// In parts that do not overlap, in the order that keeps what is still to be copied.
void CudaMemory::move(std::byte* to, const std::byte* from, size_t bytes) {
  const size_t distance = static_cast<size_t>(to < from ? from - to : to - from);
  if (distance == 0) return;
  const size_t part = distance >= bytes ? bytes : std::min(distance, kMovePart);
  if (distance < kMovePart && distance < bytes) {
    // A near move would be many small ones: by way of other memory.
    Buffer aside(std::min(bytes, kMovePart), this);
    for (size_t done = 0; done < bytes;) {
      const size_t n = std::min(aside.size(), bytes - done);
      const size_t at = to < from ? done : bytes - done - n;
      copy_within(stream_, aside.data(), from + at, n);
      copy_within(stream_, to + at, aside.data(), n);
      done += n;
    }
    wait(stream_);
    return;
  }
  for (size_t done = 0; done < bytes;) {
    const size_t n = std::min(part, bytes - done);
    const size_t at = to < from ? done : bytes - done - n;
    copy_within(stream_, to + at, from + at, n);
    done += n;
  }
  wait(stream_);
}

void CudaMemory::clear(std::byte* to, size_t pitch, size_t width, size_t rows) {
  cuda::clear(stream_, to, pitch, width, rows);
}

void CudaMemory::pin(std::byte* block, size_t bytes) { cuda::pin(block, bytes); }
void CudaMemory::unpin(std::byte* block) noexcept { cuda::unpin(block); }

size_t CudaMemory::available() const { return device_facts().free; }

Staging::~Staging() {
  wait(memory_.stream());
  for (Chunk& c : chunks_) free_pinned(c.host);
}

void Staging::add_chunk(size_t bytes) {
  Chunk c;
  c.device = Buffer(bytes, &memory_);
  c.host = allocate_pinned(bytes);
  if (c.host == nullptr) fail(Code::over_capacity, "the system refused {} pinned bytes", bytes);
  chunks_.push_back(std::move(c));
}

Staging::Room Staging::take(size_t bytes) {
  const size_t n = aligned(std::max<size_t>(1, bytes));
  if (chunks_.empty() || chunks_.back().used + n > chunks_.back().device.size()) {
    add_chunk(std::max({kFirstChunk, n, chunks_.empty() ? 0 : 2 * chunks_.back().device.size()}));
  }
  Chunk& c = chunks_.back();
  const size_t at = c.used;
  c.used += n;
  return {static_cast<std::byte*>(c.host) + at, c.device.data() + at, bytes};
}

void Staging::send(const Room& room) {
  copy_in(memory_.stream(), room.device, room.host, room.bytes);
}

void Staging::fetch(const Room& room) {
  copy_out(memory_.stream(), room.host, room.device, room.bytes);
  wait(memory_.stream());
}

void Staging::next_call() {
  if (chunks_.empty()) return;
  if (chunks_.size() == 1 && 2 * chunks_.back().used < chunks_.back().device.size()) return;
  wait(memory_.stream());
  // The last chunk is the largest.
  for (size_t i = 0; i + 1 < chunks_.size(); ++i) free_pinned(chunks_[i].host);
  chunks_.erase(chunks_.begin(), chunks_.end() - 1);
  chunks_.back().used = 0;
}

}  // namespace lorry::cuda
