// What the registry waits for on other ranks.
#include <utility>

#include "adapters/registry.h"

namespace lorry {

// An image is there when all ranks have their part of it.
void AdapterRegistry::take_mirrored() {
  for (size_t i = 0; i < unmirrored_.size();) {
    LoadResult& r = unmirrored_[i];
    const std::string digest = r.error ? std::string() : to_hex(r.adapter->digest());
    std::optional<Error> elsewhere;
    if (!options_.mirror->has_read(r.id, digest, elsewhere)) {
      ++i;
      continue;
    }
    if (!r.error) r.error = std::move(elsewhere);
    LoadResult done = std::move(r);
    unmirrored_.erase(unmirrored_.begin() + static_cast<std::ptrdiff_t>(i));
    take(std::move(done));
  }
}

}  // namespace lorry
