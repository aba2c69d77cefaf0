#include "cli/sampling_flags.h"

#include <algorithm>
#include <limits>
#include <random>

#include <CLI/CLI.hpp>

#include "cli/values.h"

namespace lorry {

namespace {

constexpr int64_t kDefaultNewTokens = 256;

uint64_t random_seed() {
  std::random_device device;
  return uint64_t{device()} << 32 | device();
}

}  // namespace

void add_sampling_flags(CLI::App& app, SamplingFlags& f) {
  const char* group = "Answer";
  accept_units(app.add_option("--max-new-tokens", f.max_new_tokens,
                              "Longest answer in tokens (default: 256, or what the model admits)")
                   ->group(group),
               1, std::numeric_limits<int32_t>::max());
  app.add_option("--stop", f.stop, "Text that ends the answer, may be given again (default: none)")
      ->group(group)
      ->type_name("TEXT")
      ->allow_extra_args(false);
  app.add_flag("--ignore-eos", f.ignore_eos, "Go on after the token that ends an answer")
      ->group(group);
  const char* sampling = "Sampling (without any of these: always the likeliest token)";
  accept_range(app.add_option("--temperature", f.temperature,
                              "0: the likeliest token; 1: as the model says (default: 1)")
                   ->group(sampling),
               0.0, 100.0);
  accept_range(app.add_option("--top-k", f.top_k, "Only the k likeliest tokens (default: all)")
                   ->group(sampling),
               1, std::numeric_limits<int32_t>::max());
  accept_range(
      app.add_option("--top-p", f.top_p, "Only the likeliest tokens that make up p (default: 1)")
          ->group(sampling),
      1e-6, 1.0);
  accept_range(app.add_option("--min-p", f.min_p,
                              "Only tokens p times as likely as the likeliest (default: 0)")
                   ->group(sampling),
               0.0, 1.0);
  accept_range(app.add_option("--typical-p", f.typical_p,
                              "Only tokens of typical surprise that make up p (default: 1)")
                   ->group(sampling),
               1e-6, 1.0);
  app.add_option("--seed", f.seed, "The same seed gives the same answer (default: random)")
      ->group(sampling)
      ->type_name("N");
  const char* penalties = "Penalties";
  accept_range(app.add_option("--repetition-penalty", f.repetition_penalty,
                              "> 1: repeats fewer tokens (default: 1)")
                   ->group(penalties),
               1e-3, 100.0);
  accept_range(app.add_option("--frequency-penalty", f.frequency_penalty,
                              "-2 to 2, for each time used (default: 0)")
                   ->group(penalties),
               -2.0, 2.0);
  accept_range(
      app.add_option("--presence-penalty", f.presence_penalty, "-2 to 2, once used (default: 0)")
          ->group(penalties),
      -2.0, 2.0);
}

Request make_request(const SamplingFlags& f, std::vector<int32_t> prompt, int64_t longest) {
  Request r;
  const int64_t room = std::max<int64_t>(1, longest - static_cast<int64_t>(prompt.size()));
  r.max_new_tokens = f.max_new_tokens > 0 ? f.max_new_tokens
                                          : static_cast<int32_t>(std::min(kDefaultNewTokens, room));
  r.prompt = std::move(prompt);
  r.ignore_eos = f.ignore_eos;
  r.stop = f.stop;
  SamplingParams& s = r.sampling;
  const bool asked = f.temperature || f.top_k || f.top_p || f.min_p || f.typical_p;
  s.sample = asked && f.temperature.value_or(1) > 0;
  if (s.sample) {
    s.temperature = f.temperature.value_or(1);
    s.seed = f.seed ? *f.seed : random_seed();
  }
  s.top_k = f.top_k.value_or(0);
  s.top_p = f.top_p.value_or(1);
  s.min_p = f.min_p.value_or(0);
  s.typical_p = f.typical_p.value_or(1);
  s.repetition_penalty = f.repetition_penalty;
  s.frequency_penalty = f.frequency_penalty;
  s.presence_penalty = f.presence_penalty;
  return r;
}

}  // namespace lorry
