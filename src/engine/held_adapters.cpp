#include "engine/held_adapters.h"

#include <utility>

namespace lorry {

// Forgets all others whose image was there.
void HeldAdapters::clear(int32_t content, int64_t first, int64_t end) {
  std::erase_if(held_, [&](const auto& entry) {
    const auto& [other, held] = entry;
    return other != content && held.first < end && first < held.end;
  });
}

void HeldAdapters::expect(int32_t content, int64_t to, int64_t bytes) {
  clear(content, to, to + bytes);
  held_[content] = {to, to + bytes, nullptr};
}

void HeldAdapters::put(int32_t content, std::unique_ptr<Adapter> adapter) {
  held_.at(content).adapter = std::move(adapter);
}

void HeldAdapters::move(int32_t content, std::byte* memory, int64_t to, int64_t bytes) {
  clear(content, to, to + bytes);
  Held& held = held_.at(content);
  held.first = to;
  held.end = to + bytes;
  held.adapter->rebase(memory + to);
}

}  // namespace lorry
