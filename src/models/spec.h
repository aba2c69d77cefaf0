// Spec: the values that tell architectures apart. Read from config.json once; the same for every
// layer. Nothing above src/models knows a model's name.
#pragma once
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "ops/ops.h"

namespace lorry {

struct RopeSpec {
  enum class Kind : uint8_t { plain, linear, dynamic, llama3, yarn, longrope };
  Kind kind = Kind::plain;
  double theta = 10000;
  double factor = 1;
  int64_t original_positions = 0;                    // the length that the scaling starts from
  double low_freq_factor = 1, high_freq_factor = 4;  // llama3
  double beta_fast = 32, beta_slow = 1;              // yarn
  bool truncate = true;                              // yarn
  double attention_factor = 1;                       // cos and sin are multiplied by it
  std::vector<double> short_factor, long_factor;     // longrope, [d / 2]
  // Its frequencies depend on the sequence's length: such sequences skip the prefix cache.
  bool depends_on_length() const { return kind == Kind::dynamic || kind == Kind::longrope; }
};

// How the linears of a model are stored. Router, norms and embedding are always plain.
struct WeightFormats {
  WeightFormat linears;  // of attention and experts
  WeightFormat head;
};

struct Spec {
  std::string model_type;
  int32_t vocab = 0, dim = 0, layers = 0, ffn = 0;
  AttentionSpec attention;
  int32_t experts = 0;
  Routing routing;
  Activation activation = Activation::silu;
  float norm_eps = 1e-5F;
  bool norm_centered = false;
  float qkv_clip = std::numeric_limits<float>::infinity();
  RopeSpec rope;
  int64_t max_positions = 0;
  bool tied_head = false;
  bool fused_qkv = false;  // adapters name one qkv site instead of q, k and v
  WeightFormats formats;   // not of the family: of this checkpoint, or as the user wants them

  int64_t q_dim() const { return int64_t{attention.heads} * attention.head_dim; }
  int64_t kv_dim() const { return int64_t{attention.kv_heads} * attention.head_dim; }
  int64_t qkv_dim() const { return q_dim() + 2 * kv_dim(); }
  SiteIndex sites() const { return {layers, experts}; }
};

// Columns of the gate_up matrix (ops.h): gate and up interleaved by panels, both padded.
inline int64_t gate_up_dim(int64_t ffn) { return 2 * ((ffn + kPanel - 1) / kPanel * kPanel); }

}  // namespace lorry
