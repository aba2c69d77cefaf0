// Ranks that something else has started, all on one host: they meet by its messages and exchange
// through shared memory from then on.
#pragma once
#include <memory>

#include "parallel/comm.h"

namespace lorry {

// Every rank of `messages` calls. Returns a comm over shared memory that ends with messages->end(),
// or `messages` itself where ranks are on other hosts or one cannot open the memory of rank 0. The
// bits of a sum are the same either way.
std::unique_ptr<Comm> share_one_host(std::unique_ptr<Comm> messages);

// The same without taking `messages` over, for who uses both; null where there is no such comm.
std::unique_ptr<Comm> meet_in_shared_memory(Comm& messages);

}  // namespace lorry
