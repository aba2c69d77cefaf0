// TensorSource: where a model's tensors come from: a checkpoint on disk, a folder that
// `lorry quantize` packed, or random numbers made in memory for benchmarks.
#pragma once
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/memory.h"
#include "lorry/tensor.h"
#include "models/spec.h"
#include "weights/checkpoint.h"
#include "weights/packed_file.h"
#include "weights/quant_matrix.h"

namespace lorry {

struct Slice;

class TensorSource {
 public:
  virtual ~TensorSource() = default;
  // Whether there is such a tensor, plain or quantised.
  virtual bool has(std::string_view name) const = 0;
  // f32, f16 or bf16, of exactly `shape`; valid until the next call. What is stored quantised is
  // widened. Throws Error naming the tensor.
  virtual Tensor tensor(const std::string& name, const Shape& shape) = 0;
  // How the checkpoint says that it is quantised.
  virtual QuantScheme scheme() const { return {}; }
  // Whether the matrix is stored quantised.
  virtual bool quantised(std::string_view) const { return false; }
  // Requires of both: quantised(name).
  virtual std::vector<int32_t> order(const std::string& name, int64_t in);
  virtual QuantMatrix matrix(const std::string& name, int64_t out, int64_t in);
  // Not null: the file has the linears as the kernels read them, and pieces (loader.h) in place of
  // tensors: has() knows no name of a checkpoint.
  virtual const PackedFile* packed() const { return nullptr; }
  // The packed piece for a weight of this format and shape. Requires: packed(). Throws
  // Error(bad_file) when there is no such piece.
  virtual const PackedPiece& piece(const std::string& name, const Weight& layout);

  // Whether tensors are random, so that a backend may as well make them; the seed of one.
  virtual bool random() const { return false; }
  virtual uint64_t seed(const std::string&) const { return 0; }

  // Says that the slice's rows will be read soon. Nothing happens where there are none.
  virtual void will_need(const Slice&) const {}
  // What was given so far was read and need not stay in this process's memory.
  virtual void release() {}
  virtual int64_t file_bytes() const { return 0; }
  // Names that nothing has asked for.
  virtual std::vector<std::string> unused() const { return {}; }
};

// A model's files, opened and checked, nothing of its weights read.
struct ModelFiles {
  Config config;
  std::string digest;         // hex; of what was packed: that of the model itself. Empty: synthetic
  std::string config_sha256;  // hex; empty: synthetic
  std::unique_ptr<TensorSource> source;
};

// `model`: a folder, or "synthetic:...". Throws Error: as Checkpoint::open and PackedFile::open;
// unsupported for a quantisation that is not read.
ModelFiles open_model(const std::string& model);

// Throws Error for a quantisation that is not read.
std::unique_ptr<TensorSource> checkpoint_source(Checkpoint checkpoint);
std::unique_ptr<TensorSource> packed_source(PackedFile file);

std::string to_string(const WeightFormat& format);  // "int4 in groups of 128", "plain"
WeightFormat weight_format(const PackedFormat& format);
PackedFormat packed_format(const WeightFormat& format);

// bf16 values uniform in ±sqrt(3 / fan-in) (unit gain), a function of the name and the index; norms
// are one. Every name exists.
std::unique_ptr<TensorSource> random_source();

}  // namespace lorry
