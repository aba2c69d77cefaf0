// ExtentArena: divides a range of memory into extents of any size and, when the room is there but
// in pieces, says which extents to move. Integers only: the owner holds the memory, carries moves
// out and knows who uses an extent. One thread.
//
// Extents and holes are kept in address order; neighbouring holes are one hole. An extent is taken
// from the smallest hole that holds it (the lowest of several): O(log n), as giving back is.
#pragma once
#include <cstdint>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "base/slots.h"

namespace lorry {

class ExtentArena {
 public:
  static constexpr int64_t kGranule = 4096;

  // Bytes that an extent for `bytes` takes: whole granules.
  static constexpr int64_t rounded(int64_t bytes) {
    return (bytes + kGranule - 1) / kGranule * kGranule;
  }

  // Manages [0, bytes), rounded down to whole granules.
  explicit ExtentArena(int64_t bytes);

  // An extent of at least `bytes` (> 0), which is fixed: it does not move until settle().
  // `owner` is the caller's. Nothing: no hole is that large.
  std::optional<int32_t> take(int64_t bytes, int32_t owner);
  void give_back(int32_t extent);
  void fix(int32_t extent);
  void settle(int32_t extent);

  int64_t offset(int32_t extent) const { return at(extent).offset; }
  int64_t size() const { return size_; }
  int64_t free() const { return free_; }
  int64_t largest_hole() const { return holes_.empty() ? 0 : holes_.rbegin()->first; }

  // Bytes [from, from + bytes) go to [to, ...); to < from, the two may overlap.
  struct Move {
    int32_t extent = -1, owner = -1;
    int64_t from = 0, to = 0, bytes = 0;
  };
  // The moves that make a hole of `bytes` and move the fewest bytes, in the order in which they are
  // to be carried out. Extents that are fixed or larger than `largest` stay where they are. Empty:
  // no moves help, or none are needed. O(extents).
  std::vector<Move> plan_moves(int64_t bytes, int64_t largest) const;
  // The move has been carried out. Requires: the next one of a plan made since the last change.
  void moved(const Move& move);

  // Aborts where the books do not add up. For tests; O(extents).
  void check_integrity() const;

 private:
  // An extent or a hole.
  struct Block {
    int64_t offset = 0, bytes = 0;
    int32_t owner = -1;
    int32_t previous = -1, next = -1;  // in address order
    bool hole = false, fixed = false;
  };

  Block& at(int32_t i) { return blocks_[i]; }
  const Block& at(int32_t i) const { return blocks_[i]; }
  bool is_extent(int32_t i) const { return blocks_.is_taken(i) && !at(i).hole; }
  int32_t new_block(int64_t offset, int64_t bytes);
  void link_after(int32_t block, int32_t previous);
  void unlink(int32_t block);
  void add_hole(int32_t block);
  // The hole and the hole after it, if there is one, become one.
  void join_next(int32_t hole);

  int64_t size_ = 0, free_ = 0;
  Slots<Block> blocks_;
  int32_t first_ = -1;
  // (bytes, (offset, block)) of each hole.
  std::set<std::pair<int64_t, std::pair<int64_t, int32_t>>> holes_;
};

}  // namespace lorry
