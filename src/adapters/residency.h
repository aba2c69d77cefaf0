// Residency: which adapter images are in memory and in which tier, who waits for room, who is
// evicted and who must step aside. Pure policy over integers: no tensor, file, thread or clock
// (times are arguments). Engine thread only.
//
// An item is one image of known size. An image travels from its source into the host tier and from
// there to the device; one that is larger than the host tier (each, when that is empty) is read
// into device memory directly. The owner carries out what next() says.
//
// Policy
// - Items that are wanted and not on the device stand in line, one line a tier, first come first
//   served: nobody slips past a large one.
// - Room comes from idle images, the least recently used first, and from moving images together
//   when that costs no more than move_bytes or nothing is idle. On the device the pinned are not
//   idle, nor who waits to be pinned; in the host tier those in line for the device are not. An
//   eviction from one tier leaves the other alone.
// - Rotation: an item's turn begins when it gets its place on the device, and lasts cycle_time, but
//   not less than kLoadShare times what the last load onto the device took, so that no more than
//   one part in kLoadShare + 1 of the room is lost to loads. While somebody is in want of room (or
//   of a place among the max_active pinned ones) and nothing is idle, rotate() names the item whose
//   turn ended first; it goes to the end of the line. A turn is not renewed by new requests while
//   others wait.
//
// Bound: with n items before it in line for the device, an item gets its turn after at most
// (n + 1) * (turn + step + load), each the longest there is, if the owner calls next() and rotate()
// each step; those that keep() protects and no host image backs up end by themselves, and what they
// still need comes on top.
#pragma once
#include <array>
#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "adapters/arena.h"
#include "base/slots.h"

namespace lorry {

enum class AdapterTier : uint8_t { host, device };

class Residency {
 public:
  using Time = std::chrono::steady_clock::time_point;
  using Duration = std::chrono::nanoseconds;

  static constexpr int kLoadShare = 4;

  struct Options {
    int64_t device_bytes = 0;
    int64_t host_bytes = 0;                               // 0: no host tier
    int32_t max_active = 1024;                            // items pinned at once
    Duration cycle_time{std::chrono::milliseconds(250)};  // until set_cycle_time()
    int64_t move_bytes = int64_t{32} << 20;               // larger images are never moved
  };

  struct Work {
    enum class Kind : uint8_t {
      read,  // from the source to `to`
      copy,  // from `from` in the host tier to `to` on the device
      move,  // within `tier`, from `from` to `to` < from
    } kind = Kind::read;
    int32_t item = -1;
    AdapterTier tier = AdapterTier::device;  // that of `to`
    int64_t from = 0, to = 0, bytes = 0;     // offsets into the tiers' memory
  };

  struct TierCounts {
    int64_t size = 0, used = 0;  // bytes
    int64_t items = 0;           // complete images
    int64_t fills = 0, filled_bytes = 0, evictions = 0, moves = 0, moved_bytes = 0;
  };
  struct Counts {
    TierCounts host, device;
    int64_t waits = 0;  // items that found no room when they were first in line
    int64_t rotations = 0;
    int64_t active = 0;  // pinned items
  };

  explicit Residency(const Options& options);

  // Whether an image of that size can ever be on the device.
  bool fits(int64_t bytes) const;
  // A new item, nowhere and not wanted. Requires: fits(bytes).
  int32_t add(int64_t bytes);
  // Requires: not wanted. Its number may come again once nothing is being done to it.
  void remove(int32_t item);

  // Somebody who will pin it claims it; again for each one who comes.
  void want(int32_t item, Time now);
  // The last claim is gone. Requires: not pinned.
  void unwant(int32_t item);
  // Whether the source may be gone: if so, its last image is not given up while it is wanted.
  void keep(int32_t item, bool on, Time now);

  // Whether there is a complete image.
  bool is_in(int32_t item, AdapterTier tier) const { return at(item).place(tier) == Place::full; }
  // Where a complete image begins.
  int64_t offset(int32_t item, AdapterTier tier) const;

  // One more request runs with it. False: it is not its turn, not there, or max_active are pinned;
  // to be tried again after next(). Requires: wanted.
  bool pin(int32_t item);
  void unpin(int32_t item);

  // What to do next; evicts as needed. A move is carried out before any other call here; the other
  // kinds in any order and by any thread, and are told to finished(). Nothing: everybody has what
  // they want, or must wait.
  std::optional<Work> next(Time now);
  // A read or a copy has ended. A read that failed removes the item, wanted or not.
  void finished(int32_t item, bool ok, Time now);
  // Called when next() has nothing: an item all of whose pins are to be given up now.
  std::optional<int32_t> rotate(Time now);
  // Of the turns that begin from now on.
  void set_cycle_time(Duration cycle_time) { cycle_time_ = cycle_time; }

  // Items that lost their last image and that nobody wants. To be called after unwant() and next().
  std::vector<int32_t> take_lost() { return std::exchange(lost_, {}); }

  Counts counts() const;
  // Aborts where the books do not add up. For tests.
  void check_integrity() const;

 private:
  using Tier = AdapterTier;
  enum class Place : uint8_t { absent, filling, full };
  enum class Line : uint8_t { none, host, device };

  struct Item {
    int64_t bytes = 0;
    bool removed = false;  // forgotten by the owner, work on it goes on
    bool wanted = false, kept = false;
    bool fresh = false;  // on the device, and who wants it has had no chance to pin it
    bool busy = false;   // being read or copied
    bool waited = false;
    int32_t pins = 0;
    Line line = Line::none;
    uint64_t ticket = 0;                // its place in the line
    uint64_t used_last = 0;             // order of the last use
    std::array<uint64_t, 2> idle_as{};  // used_last of its entry in idle_, 0: it has none
    Time turn_end{};                    // of its turn on the device
    Time load_begin{};                  // of the last read or copy
    Duration load{};                    // the last one onto the device
    std::array<Place, 2> places{};
    std::array<int32_t, 2> extents{-1, -1};

    Place place(Tier t) const { return places[static_cast<size_t>(t)]; }
    int32_t extent(Tier t) const { return extents[static_cast<size_t>(t)]; }
  };

  static constexpr std::array kTiers = {Tier::host, Tier::device};
  static size_t index(Tier t) { return static_cast<size_t>(t); }
  Item& at(int32_t i) { return items_[i]; }
  const Item& at(int32_t i) const { return items_[i]; }
  ExtentArena& arena(Tier t) { return arenas_[index(t)]; }
  const ExtentArena& arena(Tier t) const { return arenas_[index(t)]; }
  std::map<uint64_t, int32_t>& line(Line l) { return lines_[l == Line::device ? 1 : 0]; }
  TierCounts& counts(Tier t) { return t == Tier::host ? counts_.host : counts_.device; }

  bool via_host(const Item& item) const;
  bool is_nowhere(const Item& item) const;
  bool is_idle(const Item& item, Tier tier) const;
  Line line_for(const Item& item) const;
  bool others_wait() const;
  // Brings an item's entries in idle_ and fresh_ up to date after any change of it.
  void update(int32_t item);
  void join_line(int32_t item);
  void leave_line(int32_t item);
  void begin_turn(int32_t item, Time now);
  void drop_image(int32_t item, Tier tier);
  void evict(int32_t item, Tier tier);
  void free_item(int32_t item);
  std::optional<Work> serve_line(Tier tier, Time now);
  std::optional<Work> start(int32_t item, Tier tier, Time now);
  Work begin_fill(int32_t item, Tier tier, int32_t extent);
  std::optional<Work> move_together(int64_t bytes, Tier tier);
  void check_item(int32_t item) const;

  const Options options_;
  std::array<ExtentArena, 2> arenas_;
  Slots<Item> items_;
  std::array<std::map<uint64_t, int32_t>, 2> lines_;            // ticket -> item, host and device
  std::array<std::set<std::pair<uint64_t, int32_t>>, 2> idle_;  // (used_last, item)
  std::array<int64_t, 2> idle_bytes_{};
  std::set<std::pair<Time, int32_t>> turns_;  // of the pinned items, by the end of the turn
  std::set<int32_t> fresh_;
  std::vector<int32_t> lost_;
  Duration cycle_time_;
  bool blocked_ = false;  // who is first in line for the device finds no room
  uint64_t n_tickets_ = 0, n_uses_ = 0;
  Counts counts_;
};

}  // namespace lorry
