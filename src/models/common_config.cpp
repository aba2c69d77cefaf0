#include "models/common_config.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace lorry {

namespace {

constexpr double kBig = 1e9;

std::vector<double> factors(const Config& c, const std::string& key, int64_t head_dim) {
  std::vector<double> f = c.numbers(key, {.min = 1e-6, .max = kBig});
  if (static_cast<int64_t>(f.size()) != head_dim / 2) {
    fail(Code::bad_file, "{}: \"{}\" has {} numbers, expected head_dim / 2 = {}", c.file(), key,
         f.size(), head_dim / 2);
  }
  return f;
}

void read_yarn(RopeSpec& r, const Config& c) {
  r.beta_fast = c.number("beta_fast", {.min = 1e-3, .max = kBig}, 32.0);
  r.beta_slow = c.number("beta_slow", {.min = 1e-3, .max = kBig}, 1.0);
  r.truncate = c.boolean("truncate", true);
  const auto mscale = [&](double m) {
    return r.factor > 1 ? 0.1 * m * std::log(r.factor) + 1 : 1.0;
  };
  const double m = c.number("mscale", {.min = 0, .max = kBig}, 0.0);
  const double all = c.number("mscale_all_dim", {.min = 0, .max = kBig}, 0.0);
  const double computed = m > 0 && all > 0 ? mscale(m) / mscale(all) : mscale(1);
  r.attention_factor = c.number("attention_factor", {.min = 1e-6, .max = kBig}, computed);
}

void read_longrope(RopeSpec& r, const Config& c, int64_t head_dim, int64_t max_positions) {
  r.short_factor = factors(c, "short_factor", head_dim);
  r.long_factor = factors(c, "long_factor", head_dim);
  const auto original = static_cast<double>(r.original_positions);
  const double growth =
      c.number("factor", {.min = 1e-3, .max = kBig}, static_cast<double>(max_positions) / original);
  const double computed = growth <= 1 ? 1.0 : std::sqrt(1 + std::log(growth) / std::log(original));
  r.attention_factor = c.number("attention_factor", {.min = 1e-6, .max = kBig}, computed);
}

}  // namespace

RopeSpec rope_spec(const Config& config, double theta, int64_t head_dim, int64_t max_positions) {
  using Kind = RopeSpec::Kind;
  RopeSpec r;
  r.theta = theta;
  r.original_positions = max_positions;
  const std::string key = config.has("rope_scaling") ? "rope_scaling" : "rope_parameters";
  if (!config.has(key)) return r;
  const Config c = config.child(key);
  r.theta = c.number("rope_theta", {.min = 1, .max = 1e12}, theta);
  const std::string kind = c.text("rope_type", {}, c.text("type", {}, "default"));
  if (kind == "default") return r;
  // Dynamic scaling starts from max_position_embeddings itself.
  if (kind != "dynamic") {
    // transformers also takes the key from the top level.
    const int64_t fallback =
        config.integer("original_max_position_embeddings", {1, kMaxPositions}, max_positions);
    r.original_positions =
        c.integer("original_max_position_embeddings", {1, kMaxPositions}, fallback);
  }
  if (kind == "longrope" || kind == "su") {
    r.kind = Kind::longrope;
    read_longrope(r, c, head_dim, max_positions);
    return r;
  }
  r.factor = c.number("factor", {.min = 1e-3, .max = kBig});
  if (kind == "linear") {
    r.kind = Kind::linear;
  } else if (kind == "dynamic") {
    r.kind = Kind::dynamic;
  } else if (kind == "llama3") {
    r.kind = Kind::llama3;
    r.low_freq_factor = c.number("low_freq_factor", {.min = 1e-6, .max = kBig});
    r.high_freq_factor = c.number("high_freq_factor", {.min = 1e-6, .max = kBig});
  } else if (kind == "yarn") {
    r.kind = Kind::yarn;
    read_yarn(r, c);
  } else {
    fail(Code::unsupported,
         "{}: rope_type \"{}\" is not supported; known: default, linear, dynamic, llama3, yarn, "
         "longrope, su",
         c.file(), kind);
  }
  return r;
}

int64_t usable_positions(const RopeSpec& rope, int64_t max_positions) {
  if (rope.kind != RopeSpec::Kind::dynamic) return max_positions;
  const double grown = static_cast<double>(max_positions) * rope.factor;
  return std::max(max_positions, static_cast<int64_t>(std::min(grown, 1e9)));
}

Activation activation_of(const Config& config, const std::string& key,
                         const std::string& fallback) {
  const std::string name = config.text(key, {}, fallback);
  if (name == "silu" || name == "swish") return Activation::silu;
  if (name == "gelu") return Activation::gelu_erf;
  if (name == "gelu_fast" || name == "gelu_pytorch_tanh" || name == "gelu_new") {
    return Activation::gelu_tanh;
  }
  fail(Code::unsupported,
       "{}: \"{}\" is \"{}\"; supported: silu, gelu, gelu_fast, gelu_pytorch_tanh, gelu_new",
       config.file(), key, name);
}

void check_spec(const Config& config, const Spec& s) {
  if (s.attention.heads % s.attention.kv_heads != 0) {
    fail(Code::bad_file, "{}: {} attention heads are no multiple of {} key/value heads",
         config.file(), s.attention.heads, s.attention.kv_heads);
  }
  if (s.attention.head_dim % 2 != 0) {
    fail(Code::bad_file, "{}: head_dim {} is odd; rotary embeddings need an even one",
         config.file(), s.attention.head_dim);
  }
  if (s.routing.top_k > s.experts) {
    fail(Code::bad_file, "{}: {} experts per token, but only {} experts", config.file(),
         s.routing.top_k, s.experts);
  }
}

}  // namespace lorry
