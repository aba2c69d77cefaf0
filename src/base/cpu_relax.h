// What a thread tells its core while it waits for another core's write.
#pragma once

namespace lorry {

inline void cpu_relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb");  // `yield` does nothing on most cores: this takes about as long as a pause
#endif
}

}  // namespace lorry
