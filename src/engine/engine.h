// Engine: continuous batching of requests over one model, each with its own adapter.
// One thread owns sequences, KV cache, adapters and the model; others call submit() and cancel(),
// which put a command into a bounded inbox. Answers leave through the request's sink.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "adapters/loader.h"
#include "adapters/snapshot.h"
#include "base/log.h"
#include "base/progress.h"
#include "base/topology.h"
#include "engine/request.h"
#include "engine/step_counter.h"
#include "lorry/forward.h"
#include "models/spec.h"
#include "parallel/comm.h"
#include "text/tokenizer.h"

namespace lorry {

struct OpTimes;

struct EngineOptions {
  std::string model;  // a checkpoint folder, or "synthetic:mini-mixtral"
  Dtype dtype = Dtype::bf16;
  WeightFormats formats;  // of a checkpoint that is not quantised itself
  KvFormat kv_format = KvFormat::act;
  bool map_weights = false;     // of a packed model: use them where they are mapped
  std::string format_note;      // for the log: what a name of another server means
  ProgressSink progress;        // of loading the weights
  int32_t threads = 0;          // 0: one per physical core, divided by the ranks of the host
  Topology topology;            // of several NUMA nodes: threads and memory are bound to them
  std::string isa;              // as to_string(Isa) says; "" picks the best
  std::string device = "auto";  // "cpu", "cuda", or "auto": a GPU where there is one for this model
  bool check_ops = false;       // verify every operation's shapes and types: for tests
  OpTimes* op_times = nullptr;  // measures the operations: for benches; outlives the engine
  // The ranks of the model, of which this is one; null: it is alone. An Engine is rank 0, the
  // others follow it (engine/follower.h) with the same options.
  std::shared_ptr<Comm> comm;
  bool expert_parallel = false;    // ranks have whole experts, not a part of each
  std::string nccl_library;        // of ranks with GPUs; empty: as the system finds it
  int32_t max_batch_tokens = 512;  // rows of a step
  int32_t max_sequences = 64;      // sequences of a step
  int32_t max_logit_rows = 128;
  int32_t prefill_chunk = 0;     // tokens of one prompt per step; 0: up to the batch
  int64_t max_total_tokens = 0;  // prompt and answer of one request; 0: what the model admits
  int64_t kv_tokens = 0;         // capacity of the KV cache; 0: from the memory that is free
  double kv_memory_fraction =
      0.5;  // of the memory that is free after the weights, with kv_tokens 0
  bool prefix_cache = true;
  int32_t speculative_tokens = 0;  // drafts of one sequence in a step, at most; 0: none
  int32_t max_medusa_heads = 0;    // of an adapter, each a draft; 0: such adapters are refused
  int32_t max_requests = 1024;     // submitted and not finished
  int32_t max_lora_rank = 64;
  int64_t adapter_memory =
      0;  // bytes; 0: adapter_memory_fraction of what is free after the weights
  double adapter_memory_fraction = 0.1;
  int64_t adapter_host_memory = 0;  // bytes of packed adapters kept ready beside those in use
  // How long an adapter may run while others wait for its room, but at least 16 steps, and four
  // times what it took to load. LoRAX's default is 2.
  double adapter_cycle_seconds = 0.25;
  int32_t max_active_adapters = 1024;  // that run at once
  std::string adapter_root;            // local adapters may be named by a path below it
  std::string folded_adapter;  // folder of one that becomes part of the weights; empty: none
  std::vector<std::pair<std::string, std::string>> adapters;  // name, folder
  AdapterFetch adapter_fetch;  // empty: adapters of the hub and of S3 are refused
  int32_t adapter_fetch_threads = 16;
  std::vector<AdapterRef> preloaded_adapters;  // loaded at start, which fails if one of them does
};

// What start-up decided; printed by `lorry serve` and reported by /info.
struct MemoryPlan {
  size_t weights = 0, kv_cache = 0, scratch = 0, available = 0;
  size_t adapters = 0, adapters_host = 0;  // on the device, in the host tier
  int64_t kv_tokens = 0, kv_blocks = 0;
  KvFormat kv_format = KvFormat::act;
  std::string to_text() const;
};

struct ModelInfo {
  std::string name;    // folder or synthetic name
  std::string digest;  // of the checkpoint, hex
  Spec spec;
  Dtype dtype = Dtype::bf16;
  std::string device;  // "cpu" or "cuda"
  std::string isa;     // of the CPU; "cuda" on a GPU
  int32_t threads = 1;
  int32_t numa_nodes = 1;  // that threads and memory are bound to; 1: nothing is bound
  int64_t max_total_tokens = 0;
};

// A snapshot; each figure is exact, though not all of the same instant.
struct EngineStats {
  int64_t running = 0, waiting = 0, waiting_for_adapter = 0;
  int64_t steps = 0, preemptions = 0, finished = 0, failed = 0;
  int64_t parked = 0;  // times that a request stepped aside for another adapter
  int64_t prompt_tokens = 0, generated_tokens = 0;
  int64_t prefix_queries = 0, prefix_hits = 0;  // tokens asked for, tokens found
  int64_t kv_blocks = 0, kv_blocks_free = 0;    // free: not held by a sequence
  double step_seconds = 0;                      // total time in steps
  StepHistogram rows_of_steps, sequences_of_steps, milliseconds_of_steps;
  int64_t last_batch_tokens = 0, last_batch_sequences = 0;
  int64_t nan_total = 0;
  int64_t draft_tokens = 0, draft_tokens_kept = 0;  // verified; of these, kept

  // Packed adapters on the device, and in the host tier beside it.
  struct AdapterTier {
    int64_t bytes = 0, used_bytes = 0;
    int64_t loads = 0, evictions = 0;  // since the start
  };
  AdapterTier adapters_device, adapters_host;
  int64_t adapter_load_failures = 0;
};

// A name for a folder, to be loaded now.
struct AdapterLoad {
  std::string name, path;
  bool in_place = false;  // the name may exist; what runs with its old content finishes with that
};

class Engine {
 public:
  // Loads the model (on the calling thread), starts the engine thread and loads the preloaded
  // adapters. Throws Error.
  Engine(EngineOptions options, Log& log);
  ~Engine();  // cancels what is left and stops
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Any thread. Throws Error(invalid_argument | too_long) for a request that can never run and
  // Error(over_capacity) when max_requests are in flight; then the sink is never called.
  RequestId submit(Request request);
  // Any thread; a finished or unknown id is ignored. The sink still gets its finish (cancelled).
  void cancel(RequestId id);
  // Refuses new requests; returns when the running ones have finished or after `seconds`.
  // True: all finished.
  bool drain(double seconds);

  const ModelInfo& info() const;
  const MemoryPlan& memory() const;
  const SiteTable& sites() const;
  // Null for a synthetic model.
  const Tokenizer* tokenizer() const;
  EngineStats stats() const;
  // Answered by the engine thread between two steps, as the next three are; any thread.
  // Throws Error(unavailable) while the engine stops.
  AdapterSnapshot adapters() const;
  // Calls `done` on the engine thread once: with null when the name now means that folder's
  // content, which has been read; else with the reason, and the name means what it meant before:
  // invalid_argument (the name exists, or is out of the grammar), or what the folder's reading
  // says.
  void load_adapter(AdapterLoad load, std::function<void(const Error*)> done);
  // Forgets a name; requests in work finish. Throws Error(not_found).
  void unload_adapter(const std::string& name);
  // The engine thread's last sign of life, seconds ago, while there is work; 0 when idle.
  double stuck_seconds() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lorry
