// Calls into ffi/: its error messages become Error, its arrays are freed. Only for src/text.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "base/error.h"
#include "lorry_ffi.h"

namespace lorry::ffi {

struct Free {
  void operator()(void* memory) const { lorry_ffi_free(memory); }
};
template <class T>
using Array = std::unique_ptr<T[], Free>;

// Throws Error(code, "what: message") unless `status` is LORRY_FFI_OK; a panic becomes internal.
inline void check(int32_t status, char* error, Code code, std::string_view what) {
  Array<char> owner(error);
  if (status == LORRY_FFI_OK) return;
  std::string message(what);
  if (error != nullptr) message.append(": ").append(error);
  throw Error(status == LORRY_FFI_PANIC ? Code::internal : code, message);
}

inline const uint8_t* bytes(std::string_view text) {
  return reinterpret_cast<const uint8_t*>(text.data());
}

// Ids are not negative in ffi/; a negative one here becomes one that no vocabulary has.
inline const uint32_t* ids(std::span<const int32_t> ids) {
  return reinterpret_cast<const uint32_t*>(ids.data());
}

}  // namespace lorry::ffi
