// runtime.h on the CPU. A device's memory is ordinary memory that only kernels and copies touch.
#include "ops/cuda/runtime.h"

#include <cstdlib>
#include <cstring>

#include "ops/cuda/launch.h"

namespace lorry::cuda {

void check_launch(const char*) {}
const char* why_no_device() { return nullptr; }

DeviceFacts device_facts() {
  DeviceFacts f{};
  std::strcpy(f.name, "simt: kernels on the processor, for tests");
  f.memory = f.free = size_t{4} << 30;
  f.major = 9;
  f.processors = 1;
  return f;
}

bool has_wgmma() { return true; }

void* allocate_device(size_t bytes) { return std::aligned_alloc(256, (bytes + 255) / 256 * 256); }
void free_device(void* p) { std::free(p); }
void* allocate_pinned(size_t bytes) { return allocate_device(bytes); }
void free_pinned(void* p) { std::free(p); }
void pin(void*, size_t) {}
void unpin(void*) {}

Stream make_stream() { return nullptr; }
void free_stream(Stream) {}
void wait(Stream) {}
void copy_in(Stream, void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); }
void copy_out(Stream, void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); }
void copy_within(Stream, void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); }
void clear(Stream, void* to, size_t pitch, size_t width, size_t rows) {
  for (size_t r = 0; r < rows; ++r) std::memset(static_cast<std::byte*>(to) + r * pitch, 0, width);
}

}  // namespace lorry::cuda
