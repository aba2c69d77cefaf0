// What rank 0 and the other ranks say to each other. A round is one message of rank 0 to all, which
// they carry out, and one answer of each. Plain data, and its bytes (wire.h).
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "adapters/loader.h"
#include "engine/wire.h"
#include "lorry/forward.h"

namespace lorry {

enum class RoundKind : uint8_t { listen, step, stop };

// Of the adapter images in device memory.
struct AdapterOrder {
  bool is_read = true;  // else a move
  int32_t content = -1;
  AdapterFiles files;  // read
  int64_t from = 0;    // move
  int64_t to = 0, bytes = 0;
};

// How a read ended.
struct AdapterReport {
  int32_t content = -1;
  std::string digest;  // hex; empty: it failed
  Code code = Code::internal;
  std::string message;
};

// A forward pass with memory of its own.
struct OwnedInput {
  std::vector<int32_t> ids, positions, rope_lens, cu_seqlens, kv_lens, tables, slots, adapters,
      logit_rows;
  std::vector<int32_t> contents;  // of the adapters that `adapters` names, in their order
  ForwardInput input;             // of the above
};

void write(WireWriter& to, const AdapterOrder& order);
void read(WireReader& from, AdapterOrder& order);
void write(WireWriter& to, const AdapterReport& report);
void read(WireReader& from, AdapterReport& report);
// Of block tables the part that is in use.
void write(WireWriter& to, const ForwardInput& input, std::span<const int32_t> contents);
void read(WireReader& from, OwnedInput& input);

}  // namespace lorry
