// Which files of a remote folder make an adapter. Nothing else is ever fetched.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "fetch/options.h"

namespace lorry {

struct ListedFile {
  std::string name;
  int64_t size = -1;  // bytes; -1 where the listing does not say
};

// Of a listing of names relative to the folder: adapter_config.json and config.json, then
// adapter_model.safetensors and medusa_lm_head.safetensors, or all *.safetensors where neither
// exists. Files in folders below are left out. `label` ("hub repository org/name") starts the
// messages. Throws Error(bad_file) for a name that is absolute or has a part "..",
// Error(unsupported) where the weights are pickle only, Error(not_found) where a configuration or
// weights are missing.
std::vector<ListedFile> select_adapter_files(const std::vector<ListedFile>& listing,
                                             std::string_view label);

// Throws Error(bad_file) where a size that is known, or their sum, is over the limits.
void check_sizes(const std::vector<ListedFile>& files, const FetchLimits& limits,
                 std::string_view label);
// What one of the selected files may be at most.
int64_t max_bytes_of(const std::string& name, const FetchLimits& limits);

bool is_config(std::string_view name);

// For a folder without adapter_config.json, before its weights are fetched: throws
// Error(unsupported) unless the config.json at `path` is a Medusa speculator's.
void require_speculator(const std::string& path, std::string_view label);

}  // namespace lorry
