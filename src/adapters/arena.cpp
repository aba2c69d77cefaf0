#include "adapters/arena.h"

#include <algorithm>

#include "base/error.h"

namespace lorry {

ExtentArena::ExtentArena(int64_t bytes) : size_(bytes / kGranule * kGranule) {
  LORRY_CHECK(bytes >= 0, "an arena of {} bytes", bytes);
  if (size_ == 0) return;
  first_ = new_block(0, size_);
  add_hole(first_);
}

int32_t ExtentArena::new_block(int64_t offset, int64_t bytes) {
  const int32_t i = blocks_.take();
  at(i) = Block{offset, bytes};
  return i;
}

void ExtentArena::link_after(int32_t block, int32_t previous) {
  const int32_t next = previous < 0 ? first_ : at(previous).next;
  at(block).previous = previous;
  at(block).next = next;
  (previous < 0 ? first_ : at(previous).next) = block;
  if (next >= 0) at(next).previous = block;
}

void ExtentArena::unlink(int32_t block) {
  const Block& b = at(block);
  (b.previous < 0 ? first_ : at(b.previous).next) = b.next;
  if (b.next >= 0) at(b.next).previous = b.previous;
}

void ExtentArena::add_hole(int32_t block) {
  Block& b = at(block);
  b.hole = true;
  b.owner = -1;
  b.fixed = false;
  free_ += b.bytes;
  holes_.insert({b.bytes, {b.offset, block}});
}

void ExtentArena::join_next(int32_t hole) {
  const int32_t next = at(hole).next;
  if (next < 0 || !at(next).hole) return;
  holes_.erase({at(hole).bytes, {at(hole).offset, hole}});
  holes_.erase({at(next).bytes, {at(next).offset, next}});
  at(hole).bytes += at(next).bytes;
  holes_.insert({at(hole).bytes, {at(hole).offset, hole}});
  unlink(next);
  blocks_.give_back(next);
}

std::optional<int32_t> ExtentArena::take(int64_t bytes, int32_t owner) {
  LORRY_CHECK(bytes > 0, "an extent of {} bytes", bytes);
  const int64_t n = rounded(bytes);
  const auto found = holes_.lower_bound({n, {-1, -1}});
  if (found == holes_.end()) return std::nullopt;
  const int32_t extent = found->second.second;
  holes_.erase(found);
  free_ -= at(extent).bytes;
  const int64_t rest = at(extent).bytes - n;
  at(extent).bytes = n;
  at(extent).hole = false;
  at(extent).owner = owner;
  at(extent).fixed = true;
  if (rest > 0) {
    const int32_t hole = new_block(at(extent).offset + n, rest);
    link_after(hole, extent);
    add_hole(hole);
  }
  return extent;
}

void ExtentArena::give_back(int32_t extent) {
  LORRY_CHECK(is_extent(extent), "extent {} is not taken", extent);
  add_hole(extent);
  join_next(extent);
  const int32_t previous = at(extent).previous;
  if (previous >= 0 && at(previous).hole) join_next(previous);
}

void ExtentArena::fix(int32_t extent) {
  LORRY_CHECK(is_extent(extent), "extent {} is not taken", extent);
  at(extent).fixed = true;
}

void ExtentArena::settle(int32_t extent) {
  LORRY_CHECK(is_extent(extent), "extent {} is not taken", extent);
  at(extent).fixed = false;
}

// A window of neighbouring blocks none of which stays, grown to the right until its holes suffice
// and then shrunk from the left: each block enters and leaves it once.
std::vector<ExtentArena::Move> ExtentArena::plan_moves(int64_t bytes, int64_t largest) const {
  const int64_t n = rounded(bytes);
  if (free_ < n || largest_hole() >= n) return {};
  int64_t best_cost = -1;
  int32_t best_first = -1;
  int32_t first = first_;
  int64_t room = 0;
  int64_t cost = 0;
  for (int32_t i = first_; i >= 0; i = at(i).next) {
    const Block& b = at(i);
    if (!b.hole && (b.fixed || b.bytes > largest)) {
      first = b.next;
      room = cost = 0;
      continue;
    }
    (b.hole ? room : cost) += b.bytes;
    while (first != i && (!at(first).hole || room - at(first).bytes >= n)) {
      (at(first).hole ? room : cost) -= at(first).bytes;
      first = at(first).next;
    }
    if (room >= n && (best_cost < 0 || cost < best_cost)) {
      best_cost = cost;
      best_first = first;
    }
  }
  std::vector<Move> moves;
  int64_t to = best_first < 0 ? 0 : at(best_first).offset;
  int64_t hole = 0;
  for (int32_t i = best_first; i >= 0 && hole < n; i = at(i).next) {
    const Block& b = at(i);
    if (b.hole) {
      hole += b.bytes;
      continue;
    }
    moves.push_back({i, b.owner, b.offset, to, b.bytes});
    to += b.bytes;
  }
  return moves;
}

void ExtentArena::moved(const Move& move) {
  const int32_t hole = at(move.extent).previous;
  LORRY_CHECK(hole >= 0 && at(hole).hole && at(hole).offset == move.to &&
                  at(move.extent).offset == move.from && !at(move.extent).fixed,
              "extent {} is not to move from {} to {}", move.extent, move.from, move.to);
  const int64_t room = at(hole).bytes;
  holes_.erase({room, {at(hole).offset, hole}});
  unlink(hole);
  link_after(hole, move.extent);
  at(move.extent).offset = move.to;
  at(hole).offset = move.to + at(move.extent).bytes;
  holes_.insert({room, {at(hole).offset, hole}});
  join_next(hole);
}

void ExtentArena::check_integrity() const {
  int64_t offset = 0;
  int64_t free = 0;
  int32_t n_blocks = 0;
  size_t n_holes = 0;
  for (int32_t i = first_, previous = -1; i >= 0; previous = i, i = at(i).next) {
    const Block& b = at(i);
    LORRY_CHECK(blocks_.is_taken(i) && b.offset == offset && b.bytes > 0 && b.previous == previous,
                "block {} at {} of {} bytes, expected at {}", i, b.offset, b.bytes, offset);
    LORRY_CHECK(b.bytes % kGranule == 0, "block {} of {} bytes", i, b.bytes);
    offset += b.bytes;
    ++n_blocks;
    if (!b.hole) continue;
    LORRY_CHECK(previous < 0 || !at(previous).hole, "holes {} and {} are neighbours", previous, i);
    LORRY_CHECK(holes_.contains({b.bytes, {b.offset, i}}), "hole {} is not listed", i);
    free += b.bytes;
    ++n_holes;
  }
  LORRY_CHECK(offset == size_ && free == free_, "{} bytes of {}, {} free of {}", offset, size_,
              free, free_);
  LORRY_CHECK(n_holes == holes_.size(), "{} holes, {} listed", n_holes, holes_.size());
  LORRY_CHECK(n_blocks == blocks_.n_taken(), "{} blocks of {}", n_blocks, blocks_.n_taken());
}

}  // namespace lorry
