// Flags of LoRAX and vLLM that scripts pass and that mean nothing here, or cannot be had: the
// former are taken and named in the log, the latter end the start with a sentence.
#pragma once
#include "base/log.h"

namespace CLI {
class App;
}

namespace lorry {

// After all other flags: a name that is there already stays what it is.
void add_compat_flags(CLI::App& app);

// After the settings were applied. Throws Error(unsupported) naming the flag and the reason.
void tell_compat_flags(const CLI::App& app, Log& log);

}  // namespace lorry
