// Where pages lie on several NUMA nodes. Nothing is done with one.
#include "base/numa.h"
#include "ops/cpu/backend.h"

namespace lorry::cpu {

namespace {

constexpr size_t kPage = 4096;
constexpr size_t kHugePage = size_t{2} << 20;

}  // namespace

// Of each group a run of panels for every node. Where runs are of huge pages, those are not
// split: the one at a boundary belongs to one side or the other.
void CpuOps::place(const Weight& w) const {
  if (pool_.nodes() == 1) return;
  const int64_t panels = ceil_div(w.out, kPanel);
  const int64_t bytes = w.group_bytes / panels;
  const auto run = static_cast<size_t>(w.group_bytes / pool_.nodes());
  const size_t granule = run >= kHugePage ? kHugePage : kPage;
  for (int64_t g = 0; g < w.groups; ++g) {
    for (int node = 0; node < pool_.nodes(); ++node) {
      const int64_t first = pool_.first_of(node, panels);
      const int64_t n = pool_.first_of(node + 1, panels) - first;
      place_pages(w.data + g * w.group_bytes + first * bytes, static_cast<size_t>(n * bytes),
                  granule, pool_.topology()[static_cast<size_t>(node)].id);
    }
  }
}

void CpuOps::spread(std::byte* at, size_t bytes) const {
  if (pool_.nodes() > 1) interleave_pages(at, bytes, pool_.topology());
}

}  // namespace lorry::cpu
