// Model: a checkpoint, its adapters and a KV cache, for programs that want the forward pass itself
// and none of the serving. The caller decides which tokens run, in which cache blocks, with which
// adapter (forward.h). One thread at a time.
#pragma once
#include <cstdint>
#include <memory>
#include <string>

#include "lorry/error.h"
#include "lorry/forward.h"
#include "lorry/tensor.h"

namespace lorry {

struct ModelOptions {
  Dtype dtype = Dtype::bf16;  // or f32
  int32_t threads = 0;        // 0: one per physical core
  // On several NUMA nodes: bind threads and memory to them; the calling thread is left alone.
  bool numa = true;
  // "cpu", "cuda", or "auto": a GPU where there is one. Tensors of results are the processor's.
  std::string device = "auto";
  ForwardLimits limits;
  int32_t kv_blocks = 256;  // of 16 tokens
};

class Model {
 public:
  // Reads a Hugging Face folder (config.json, safetensors). Throws Error.
  explicit Model(const std::string& folder, const ModelOptions& options = {});
  ~Model();
  Model(Model&&) noexcept;

  // Reads a PEFT folder, or one of Medusa heads; the number is what ForwardInput::adapters names.
  // Throws Error.
  int32_t load_adapter(const std::string& folder);
  // Requires: input within the limits, slots and tables within kv_blocks.
  ForwardOutput forward(const ForwardInput& input);

  int32_t vocab() const;
  int32_t dim() const;
  int64_t max_positions() const;

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace lorry
