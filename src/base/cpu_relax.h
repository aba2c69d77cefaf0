// What a thread tells its core while it waits for another core's write.
#pragma once

namespace lorry {

// Takes some tens of nanoseconds and leaves the core's other thread room.
void cpu_relax();

}  // namespace lorry
