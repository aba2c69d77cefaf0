// The bytes in which rank 0 tells the other ranks of a model what to do. Numbers take one byte per
// seven bits, lists are written as differences: a decoding step is a few bytes a sequence and
// block. Both ends are the same program; a message that does not parse is a programmer's error.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "parallel/comm.h"

namespace lorry {

class WireWriter {
 public:
  void number(int64_t x);
  void text(const std::string& s);
  void list(std::span<const int32_t> values);
  Bytes take() { return std::move(out_); }

 private:
  Bytes out_;
};

class WireReader {
 public:
  explicit WireReader(std::span<const std::byte> in) : in_(in) {}
  int64_t number();
  std::string text();
  void list(std::vector<int32_t>& values);
  bool at_end() const { return in_.empty(); }

 private:
  std::span<const std::byte> in_;
};

}  // namespace lorry
