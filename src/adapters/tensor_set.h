// TensorSet: the tensors of one adapter, read from a file or made of several (merge.h). Its life
// has two phases: names, types and shapes are known at once; contents only after load(), in own
// memory (never mapped: a mapped file that shrinks kills the process). One thread at a time.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/sha256.h"
#include "lorry/tensor.h"
#include "weights/safetensors_header.h"

namespace lorry {

class TensorSet {
 public:
  virtual ~TensorSet() = default;

  // The file, or what was merged: for messages.
  virtual const std::string& path() const = 0;
  // load() may move the entries, but keeps their number, order and values.
  virtual const std::vector<TensorInfo>& tensors() const = 0;
  // Puts the contents into own memory. Throws Error(bad_file) when the file is no longer the one
  // that was opened, and for a value that is NaN, infinite or would be infinite in `act` (f32: in
  // bf16), naming its tensor. Called once. Requires: every tensor is f32, f16 or bf16.
  virtual void load(Dtype act) = 0;
  // A dense view. Requires: load() has returned; info is one of tensors().
  virtual Tensor tensor(const TensorInfo& info) const = 0;

  // Adds the types and contents of these tensors, each once, by rising name. Requires: as tensor().
  void hash(Sha256& to, std::vector<const TensorInfo*> of) const;

  // Bytes of all tensors.
  int64_t bytes() const;

 protected:
  // What load() promises of the values.
  void check_values(Dtype act) const;
};

// The tensors of a safetensors file; reads its header. Throws as SafetensorsFile::open.
std::unique_ptr<TensorSet> open_tensors(const std::string& path, int64_t max_bytes);
// None; `path` is what messages name.
std::unique_ptr<TensorSet> no_tensors(std::string path);

}  // namespace lorry
