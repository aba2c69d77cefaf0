// What `lorry inspect ADAPTER --model MODEL` says of an adapter: a few lines for people, or JSON
// with every adapted site. Made from a loaded Adapter, so that what is said is what is applied.
#pragma once
#include <string>

#include "adapters/adapter.h"
#include "base/json.h"

namespace lorry {

const char* to_string(SiteKind kind);  // "q", "lm_head"

// Sites of one kind where the same is done share a line; ends with a newline.
std::string describe_text(const Adapter& adapter);
// {"digest", "bytes", "max_rank", "base_model_name_or_path", "invocation_tokens", "sites":
// [{"kind", "layer", "expert", "module", "rank", "scale", "dora", "replaced", "token_rows"}]};
// layer and expert are left out where the site has none.
json::object describe_json(const Adapter& adapter);

}  // namespace lorry
