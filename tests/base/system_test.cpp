#include "base/system.h"

#include <cstdio>
#include <memory>
#include <vector>

#include <gtest/gtest.h>
#include <malloc.h>
#include <unistd.h>

namespace lorry {
namespace {

// Bytes of memory that this process has now.
size_t resident() {
  size_t all = 0, pages = 0;
  std::FILE* file = std::fopen("/proc/self/statm", "r");
  EXPECT_EQ(std::fscanf(file, "%zu %zu", &all, &pages), 2);
  std::fclose(file);
  return pages * static_cast<size_t>(sysconf(_SC_PAGESIZE));
}

// One small buffer at the end keeps a heap as large as it was, whatever is free before it.
TEST(System, trim_heap_gives_back_what_is_free_below_what_is_used) {
  constexpr size_t kEach = 8192, kAll = size_t{64} << 20;
  std::vector<std::unique_ptr<char[]>> buffers(kAll / kEach);
  for (auto& buffer : buffers) {
    buffer = std::make_unique<char[]>(kEach);  // written to
  }
  buffers.erase(buffers.begin(), buffers.end() - 1);
  if (mallinfo2().fordblks < kAll / 2) GTEST_SKIP() << "another heap than glibc's";
  const size_t before = resident();
  trim_heap();
  EXPECT_LT(resident() + kAll / 2, before);
}

}  // namespace
}  // namespace lorry
