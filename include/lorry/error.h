// Error: the one exception type for everything that a user can cause (a bad file, a bad
// request, an unknown adapter, too little room). It is thrown where it is found and caught in
// three places: the request handler, the adapter loader and main. Programmer's errors do not
// throw: they abort (base/error.h).
#pragma once
#include <stdexcept>
#include <string>
#include <utility>

namespace lorry {

enum class Code {
  invalid_argument,  // the caller's value is wrong
  not_found,         // a file, adapter or model does not exist
  unsupported,       // understood, but Lorry cannot do it
  bad_file,          // the content of a file is wrong
  over_capacity,     // a queue or a memory budget is full
  too_long,          // more tokens than the model or the limits admit
  unavailable,       // loading, draining, or a device that is absent
  internal,          // a failure inside (for example NaN logits)
};

class Error : public std::runtime_error {
 public:
  Error(Code code, std::string message) : std::runtime_error(std::move(message)), code_(code) {}
  Code code() const { return code_; }

 private:
  Code code_;
};

}  // namespace lorry
