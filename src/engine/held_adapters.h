// HeldAdapters: the adapters of a follower, by content, and where in the memory for adapters the
// image of each lies. Rank 0 says where images go and tells nobody that one is not needed any more:
// it is forgotten when another is to lie there. So there are never more than fit side by side.
// Of a content that is not held nothing may be asked.
#pragma once
#include <cstdint>
#include <memory>
#include <unordered_map>

#include "adapters/adapter.h"

namespace lorry {

class HeldAdapters {
 public:
  // The image of `content` is going to be read to [to, to + bytes).
  void expect(int32_t content, int64_t to, int64_t bytes);
  // It is there.
  void put(int32_t content, std::unique_ptr<Adapter> adapter);
  // It could not be read.
  void drop(int32_t content) { held_.erase(content); }
  // It now lies at [to, to + bytes) of `memory`, where its bytes were copied.
  void move(int32_t content, std::byte* memory, int64_t to, int64_t bytes);

  AdapterView view(int32_t content) const { return held_.at(content).adapter->view(); }
  size_t size() const { return held_.size(); }

 private:
  struct Held {
    int64_t first = 0, end = 0;
    std::unique_ptr<Adapter> adapter;  // null: it is being read
  };

  void clear(int32_t content, int64_t first, int64_t end);

  std::unordered_map<int32_t, Held> held_;
};

}  // namespace lorry
