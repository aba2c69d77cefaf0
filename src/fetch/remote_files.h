// Which files of a remote folder make an adapter, or a model. Nothing else is ever fetched.
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

struct RemoteFiles {
  RemoteKind kind = RemoteKind::adapter;  // or model
  std::vector<ListedFile> files;          // configurations first, each kind by name
};

// Of a listing of names relative to the folder. An adapter: adapter_config.json and config.json,
// adapter_model.safetensors and medusa_lm_head.safetensors, or all *.safetensors where neither
// exists. A model: all *.json and *.jinja, and model.safetensors or model-*.safetensors, or all
// *.safetensors where none has such a name. Files in folders below are left out. `label` ("hub
// repository org/name") starts the messages. Throws Error(bad_file) for a name that is absolute or
// has a part "..", Error(unsupported) where the weights are pickle or GGUF only, and for an adapter
// where a model is wanted; Error(not_found) where a configuration or weights are missing.
RemoteFiles select_files(const std::vector<ListedFile>& listing, RemoteKind wanted,
                         std::string_view label);

// -1 where one is not known.
int64_t total_bytes(const std::vector<ListedFile>& files);

// Tells `plan` what select_files chose, of which `missing` bytes are not here.
void tell_plan(const FetchControl& control, const RemoteFiles& files, int64_t missing);
// For one of several files: `before` bytes of the others are here, all have `total`.
FetchControl control_of_file(const FetchControl& control, int64_t before, int64_t total);

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
