// The benchmark: forward passes over random tokens on a loaded model, interleaved with probes of
// the machine, so that a figure can be read as a fraction of what the machine could do just then.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/memory.h"
#include "engine/loaded_model.h"
#include "ops/cpu/probe.h"
#include "ops/timed_ops.h"

namespace lorry {

struct BenchCase {
  enum class Kind : uint8_t { prefill, decode } kind = Kind::decode;
  int32_t batch = 1;     // sequences
  int32_t adapters = 0;  // distinct ones, dealt to the sequences in turn
  int32_t rank = 16;
  int32_t tokens = 512;  // prefill: rows of the step, over all sequences
  int32_t context = 64;  // decode: tokens of each sequence before the first step, random
  int32_t reps = 7;
  // The steps follow each other at once, as they do in a server, and the machine is probed before
  // the first one only: a probe in between empties the caches, which a small model lives in.
  bool warm = false;
};

struct BenchResult {
  BenchCase what;
  double seconds = 0;  // of a step: the median; warm: the mean
  double tokens_per_s = 0;
  double bytes = 0, kv_bytes = 0;  // of a step, as the count below has them
  double gb_per_s = 0;             // of these bytes
  double gflops = 0;               // of both kinds of operations
  double of_roofline = 0;          // median over steps of roofline time / measured time
  Probe probe;                     // medians
  std::string logits_sha256;       // of the first step's logits
  // With operation times: mean milliseconds of a measured step, by kind; the last one is the rest.
  std::vector<double> op_ms;
};

// What a step must move and compute, whatever the implementation: each weight once that the step
// touches (of E experts with k chosen by B independent rows: E (1 - (1 - k/E)^B)), the keys and
// values once, two operations per weight and row. Adapters are not counted.
struct BenchWork {
  double bytes = 0, kv_bytes = 0;  // all, and the keys and values among them
  double flops = 0;                // of f32 and bf16
  double int8 = 0;                 // operations of linears that multiply in whole numbers
};
BenchWork count_work(const Spec& spec, const Ops& ops, const BenchCase& c);

// Random pairs on every site of a model; their values are small, so that activations stay sane.
struct BenchAdapters {
  Buffer memory;
  std::vector<std::vector<SitePatch>> patches;
  std::vector<AdapterView> views;
};
BenchAdapters make_adapters(const LoadedModel& model, int32_t n, int32_t rank);

// Rows, sequences and KV tokens that a case needs of the model.
struct BenchSize {
  int32_t rows = 0, sequences = 0;
  int64_t kv_tokens = 0;
};
BenchSize size_of_case(const BenchCase& c);

// Requires: a model loaded with at least size_of_case. times: of the model's operations, or null.
BenchResult run_case(LoadedModel& model, const BenchCase& c, const OpTimes* times);

}  // namespace lorry
