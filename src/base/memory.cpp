#include "base/memory.h"

#include <cstdint>
#include <utility>

#include <sys/mman.h>

#include "base/error.h"

namespace lorry {

namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kLine = 64;

size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

int64_t padded_pitch(Dtype dtype, int64_t cols) {
  const int64_t line = static_cast<int64_t>(kLine) / size_of(dtype);
  const int64_t pitch = (cols + line - 1) / line * line;
  return pitch * size_of(dtype) % 4096 == 0 ? pitch + line : pitch;
}

}  // namespace

size_t Buffer::size_for(size_t bytes) {
  return round_up(bytes, bytes >= kHugePage ? kHugePage : size_t{4096});
}

Buffer::Buffer(size_t bytes, DeviceMemory* where) : where_(where) {
  if (bytes == 0) return;
  if (where != nullptr) {
    data_ = where->allocate(bytes);
    size_ = bytes;
    return;
  }
  // The rounding below must not wrap.
  if (bytes > SIZE_MAX / 2)
    fail(Code::over_capacity, "the system refused {} bytes of memory", bytes);
  // mmap gives 4 KiB alignment; large blocks are over-allocated so that their first byte starts
  // a huge page. The slack is unmapped again at once.
  const size_t length = size_for(bytes);
  const size_t slack = bytes >= kHugePage ? kHugePage : 0;
  void* p =
      mmap(nullptr, length + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) fail(Code::over_capacity, "the system refused {} bytes of memory", bytes);
  std::byte* start = static_cast<std::byte*>(p);
  if (slack != 0) {
    const size_t lead = round_up(reinterpret_cast<uintptr_t>(start), kHugePage) -
                        reinterpret_cast<uintptr_t>(start);
    if (lead != 0) munmap(start, lead);
    if (lead != slack) munmap(start + lead + length, slack - lead);
    start += lead;
    madvise(start, length, MADV_HUGEPAGE);
  }
  data_ = start;
  size_ = length;
}

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      where_(other.where_) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(where_, other.where_);
  return *this;
}

Buffer::~Buffer() {
  if (data_ == nullptr) return;
  if (where_ != nullptr) {
    where_->release(data_);
  } else {
    munmap(data_, size_);
  }
}

std::byte* Arena::take(size_t bytes) {
  LORRY_CHECK(used_ + bytes <= size_, "arena of {} bytes: {} used, {} asked", size_, used_, bytes);
  std::byte* p = data_ + used_;
  used_ += bytes;
  return p;
}

PinnedBuffer::PinnedBuffer(size_t bytes, DeviceMemory* device)
    : buffer_(bytes), device_(bytes > 0 ? device : nullptr) {
  if (device_ != nullptr) device_->pin(buffer_.data(), buffer_.size());
}

PinnedBuffer::PinnedBuffer(PinnedBuffer&& other) noexcept
    : buffer_(std::move(other.buffer_)), device_(std::exchange(other.device_, nullptr)) {}

PinnedBuffer& PinnedBuffer::operator=(PinnedBuffer&& other) noexcept {
  std::swap(buffer_, other.buffer_);
  std::swap(device_, other.device_);
  return *this;
}

PinnedBuffer::~PinnedBuffer() {
  if (device_ != nullptr) device_->unpin(buffer_.data());
}

Tensor Arena::tensor(Dtype dtype, Shape shape) {
  return view(take(tensor_bytes(dtype, shape)), dtype, shape);
}

Tensor Arena::matrix(Dtype dtype, int64_t rows, int64_t cols) {
  Tensor t = view(take(matrix_bytes(dtype, rows, cols)), dtype, {rows, cols});
  t.pitch = padded_pitch(dtype, cols);
  return t;
}

size_t Arena::tensor_bytes(Dtype dtype, Shape shape) {
  return round_up(static_cast<size_t>(shape.size() * size_of(dtype)), kLine);
}

size_t Arena::matrix_bytes(Dtype dtype, int64_t rows, int64_t cols) {
  return static_cast<size_t>(rows * padded_pitch(dtype, cols) * size_of(dtype));
}

}  // namespace lorry
