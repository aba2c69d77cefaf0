// Downloads with somebody watching: what will come, a bar while it comes, Control-C. Used by
// `lorry pull`, and by every command whose model is named as the hub names it.
#pragma once
#include "cli/sources.h"
#include "fetch/fetched.h"

namespace lorry {

enum class PullTalk { silent, lines_only, all };  // what is said of it on standard error

// Throws Error as fetch_remote does. Control-C, once: the download stops, what is here is kept for
// the next try, and the process ends with status 130; twice: at once.
Fetched pull(const RemoteName& what, RemoteKind wanted, PullTalk talk);

// Puts the files of `folder` into `to`, a new folder or one with nothing else of their names in it:
// as other names of the same files where the disk is the same, else as copies. Throws
// Error(invalid_argument | over_capacity).
void place_files(const std::string& folder, const std::string& to);

}  // namespace lorry
