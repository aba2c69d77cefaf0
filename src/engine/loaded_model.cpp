#include "engine/loaded_model.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "base/error.h"
#include "base/system.h"
#include "engine/memory_plan.h"
#include "models/base_rows.h"
#include "models/fold.h"
#include "models/loader.h"
#include "models/source.h"
#include "ops/checked_ops.h"
#include "ops/cpu/cpu_ops.h"
#include "ops/cuda/cuda_ops.h"
#include "ops/timed_ops.h"
#include "parallel/device_comm.h"

namespace lorry {

namespace {

constexpr double kLongestCycle = 86'400;  // seconds

Isa chosen_isa(const std::string& name) {
  if (name.empty()) return best_isa();
  std::string known;
  for (const Isa isa : usable_isas()) {
    if (name == to_string(isa)) return isa;
    known += fmt::format(" {}", to_string(isa));
  }
  fail(Code::invalid_argument, "--isa {} is not usable on this machine; usable:{}", name, known);
}

// Why the model cannot run on this rank's GPU; empty: it can.
std::string why_no_gpu(const EngineOptions& o, const LoadedModel& m) {
  const CudaStatus cuda = cuda_status();
  if (!cuda.usable) {
    return m.comm->size() == 1 ? cuda.text
                               : fmt::format("rank {} of {} needs a GPU of its own: {}",
                                             m.comm->rank(), m.comm->size(), cuda.text);
  }
  if (m.source->packed() != nullptr) {
    return o.model + " is packed for the CPU: use the original, with --quantize";
  }
  if (m.info.spec.attention.head_dim > kCudaMaxHeadDim) {
    return fmt::format("heads of {}: the kernels have heads of up to {}",
                       m.info.spec.attention.head_dim, kCudaMaxHeadDim);
  }
  return m.comm->size() == 1 ? std::string() : why_no_cuda_link(o.nccl_library);
}

// "cpu" or "cuda". Throws Error where the GPU that was asked for cannot be used, or not for this.
// All ranks come to the same.
std::string chosen_device(const EngineOptions& o, const LoadedModel& m) {
  if (o.device != "auto" && o.device != "cpu" && o.device != "cuda") {
    fail(Code::invalid_argument, "--device {}: expected auto, cpu or cuda", quote(o.device));
  }
  const bool wanted = o.device != "cpu";
  const std::string why = wanted ? why_no_gpu(o, m) : std::string();
  const bool all = least_of(*m.comm, wanted && why.empty() ? 1 : 0) == 1;
  if (all) return "cuda";
  if (o.device != "cuda") return "cpu";
  fail(Code::unsupported, "--device cuda: {}",
       why.empty() ? "other ranks have no GPU, or were told to leave it alone" : why);
}

void check_options(const EngineOptions& o) {
  const auto at_least = [](const char* flag, int64_t value, int64_t least) {
    if (value < least)
      fail(Code::invalid_argument, "{} {}: must be at least {}", flag, value, least);
  };
  at_least("--max-num-seqs", o.max_sequences, 1);
  at_least("--max-batch-prefill-tokens", o.max_batch_tokens, o.max_sequences);
  at_least("max_logit_rows", o.max_logit_rows, o.max_sequences);
  at_least("--prefill-chunk", o.prefill_chunk, 0);
  at_least("--speculative-tokens", o.speculative_tokens, 0);
  at_least("--max-medusa-heads", o.max_medusa_heads, 0);
  at_least("--max-concurrent-requests", o.max_requests, 1);
  at_least("--max-lora-rank", o.max_lora_rank, 1);
  if (o.kv_tokens != 0) at_least("--kv-tokens", o.kv_tokens, int64_t{2} * kBlockTokens);
  at_least("--adapter-memory", o.adapter_memory, 0);
  at_least("--adapter-host-memory", o.adapter_host_memory, 0);
  at_least("--max-active-adapters", o.max_active_adapters, 1);
  if (!(o.adapter_cycle_seconds >= 0 && o.adapter_cycle_seconds <= kLongestCycle)) {
    fail(Code::invalid_argument, "--adapter-cycle-time-s {}: expected 0 to {}",
         o.adapter_cycle_seconds, kLongestCycle);
  }
  if (!is_act(o.dtype)) {
    fail(Code::invalid_argument, "--dtype {}: expected bfloat16, float16 or float32",
         to_string(o.dtype));
  }
}

void load(LoadedModel& m, const EngineOptions& o, Log& log) {
  const auto start = std::chrono::steady_clock::now();
  const Spec& spec = m.info.spec;
  const ModelShare share(spec, m.placements[static_cast<size_t>(m.comm->rank())]);
  ModelWeights weights = load_weights(*m.architecture, share, *m.source, *m.ops,
                                      {o.progress, o.map_weights ? nullptr : m.pool.get()});
  const size_t unused = check_unused(*m.source, *m.architecture, share, m.info.name);
  if (unused > 0) log.debug("{} tensors of the checkpoint are not needed", unused);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  log.info(
      "{}: {} layers, {} experts (top {}), {} of weights loaded in {:.1f} s, {} at most in memory",
      spec.model_type, spec.layers, spec.experts, spec.routing.top_k, format_bytes(weights.bytes),
      seconds.count(), format_bytes(peak_memory()));
  if (!o.format_note.empty()) log.info("{}", o.format_note);
  if (!m.source->scheme().method.empty()) log.info("checkpoint: {}", m.source->scheme().method);
  for (const std::string& text : m.source->scheme().ignored) log.debug("{}", text);
  if (weights.from_f16 && m.ops->act() == Dtype::bf16) {
    log.info("checkpoint: float16, rounded to bfloat16; --dtype float16 keeps it as it is");
  }
  if (weights.widened > 0) {
    log.warn(
        "{} quantised matrices are stored as {}: their scales are of blocks, or of inputs that "
        "several ranks share, or matrices that read the same inputs want them in different orders",
        weights.widened, to_string(m.ops->act()));
  }
  m.lm = std::make_unique<CausalLM>(share, std::move(weights), *m.ops, *m.comm, forward_limits(o));
}

void fold(LoadedModel& m, const EngineOptions& o, Log& log) {
  if (o.folded_adapter.empty()) return;
  const WeightFormats& formats = m.info.spec.formats;
  if (!formats.linears.plain() || !formats.head.plain()) {
    fail(Code::unsupported,
         "{}: in quantised weights much of an adapter would be rounded away: leave --quantize out, "
         "or name the adapter in requests instead",
         o.folded_adapter);
  }
  const auto start = std::chrono::steady_clock::now();
  AdapterLimits limits;
  limits.max_rank = o.max_lora_rank;
  const auto adapter = load_adapter(o.folded_adapter, adapter_target(m), limits);
  if (!adapter->invocation_tokens().empty()) {
    fail(Code::unsupported,
         "{}: alora_invocation_tokens: an adapter that acts from these tokens on cannot be merged "
         "into the weights; name it in requests instead",
         o.folded_adapter);
  }
  fold_adapter(m.lm->weights(), adapter->view(), *m.ops);
  m.folded = true;
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  log.info("adapter {} (sha256:{}) merged into the weights in {:.1f} s", quote(o.folded_adapter),
           to_hex(adapter->digest()), seconds.count());
}

}  // namespace

WeightFormats formats_of(const std::string& model, const Architecture& architecture, Spec spec,
                         TensorSource& source, const WeightFormats& wanted) {
  spec.formats = wanted;
  const bool asked = !wanted.linears.plain() || !wanted.head.plain();
  if (asked && !source.scheme().method.empty()) {
    fail(Code::invalid_argument,
         "{}: this checkpoint is quantised already ({}): leave --quantize out", model,
         source.scheme().method);
  }
  const WeightFormats stored = stored_formats(architecture, spec, source);
  const bool other =
      stored.linears != wanted.linears || (!wanted.head.plain() && stored.head != wanted.head);
  if (asked && other && source.packed() != nullptr) {
    fail(Code::invalid_argument,
         "{}: this model is packed as {}, its head as {}: leave --quantize out, or pack the "
         "original again with lorry quantize",
         model, to_string(stored.linears), to_string(stored.head));
  }
  return stored;
}

namespace {

// One plan for all ranks: what each of them has room for.
void plan_memory(LoadedModel& m, const EngineOptions& o, const ModelShare& share) {
  const size_t weights = weight_bytes(*m.architecture, share, *m.source, *m.ops);
  // Nobody allocates before all have looked.
  const DeviceMemory* device = m.ops->memory();
  const auto own = device != nullptr
                       ? static_cast<int64_t>(device->available())
                       : static_cast<int64_t>(available_memory()) / m.comm->local_size();
  const auto available = static_cast<size_t>(least_of(*m.comm, own));
  m.memory = plan_memory(o, share, *m.ops, weights, available);
  if (m.comm->size() == 1) return;
  m.memory.kv_blocks = least_of(*m.comm, m.memory.kv_blocks);
  m.memory.kv_tokens = m.memory.kv_blocks * kBlockTokens;
  m.memory.adapters =
      static_cast<size_t>(least_of(*m.comm, static_cast<int64_t>(m.memory.adapters)));
}

// Ranks that differ here would make different steps, or different bits of the same one.
void check_same(const LoadedModel& m, const EngineOptions& o) {
  const ForwardLimits limits = forward_limits(o);
  const std::string own = fmt::format(
      "a {} model, checkpoint sha256:{}, {}, {}, formats {}/{} {}/{}, {} parallel, limits "
      "{}/{}/{}/{}/{}",
      m.info.digest.empty() ? m.info.name : m.info.spec.model_type, m.info.digest,
      to_string(o.dtype), m.info.device == "cuda" ? cuda_status().name : m.info.isa,
      static_cast<int>(m.info.spec.formats.linears.kind), m.info.spec.formats.linears.group,
      static_cast<int>(m.info.spec.formats.head.kind), m.info.spec.formats.head.group,
      o.expert_parallel ? "expert" : "tensor", limits.max_tokens, limits.max_sequences,
      limits.max_logit_rows, limits.max_lora_rank, limits.max_medusa_heads);
  Bytes of_first(own.size());
  std::memcpy(of_first.data(), own.data(), own.size());
  m.comm->broadcast(of_first);
  const std::string first(reinterpret_cast<const char*>(of_first.data()), of_first.size());
  if (own == first) return;
  fail(Code::invalid_argument,
       "rank {} has {}; rank 0 has {}: start all ranks with the same flags, files and instruction "
       "set (--isa)",
       m.comm->rank(), own, first);
}

void check_ranks(const LoadedModel& m, const EngineOptions& o) {
  if (m.comm->size() == 1) return;
  if (o.adapter_host_memory > 0) {
    fail(Code::unsupported,
         "--adapter-host-memory with {} ranks: they keep adapters in one place, where they are "
         "computed with: leave it out and add it to --adapter-memory",
         m.comm->size());
  }
}

}  // namespace

namespace {

// Compute threads, bound where there are several NUMA nodes; and what the system says to that.
void bind(LoadedModel& m, const EngineOptions& o, Log& log) {
  const bool on_cpu = m.info.device == "cpu";
  m.pool = std::make_unique<ThreadPool>(m.info.threads, on_cpu ? o.topology : Topology{});
  m.info.numa_nodes = m.pool->nodes();
  if (m.pool->nodes() == 1) return;
  log.info(
      "NUMA nodes {}: threads and weights are bound to them, keys and values and adapters are "
      "spread over them (--numa)",
      to_string(m.pool->topology()));
  if (m.pool->unbound() > 0) {
    log.warn("NUMA: the system does not let {} of {} threads be bound", m.pool->unbound(),
             m.info.threads - 1);
  }
  const std::string refusal = placement_refusal(m.pool->topology());
  if (!refusal.empty()) {
    log.warn(
        "NUMA: the system does not let memory be placed ({}): it lies where it is first written. "
        "In a container this needs CAP_SYS_NICE",
        refusal);
  }
  if (o.map_weights && m.source->packed() != nullptr) {
    log.info("NUMA: weights of --map-weights lie where the system has read the file to");
  }
}

std::unique_ptr<Ops> make_ops(const EngineOptions& o, const LoadedModel& m) {
  if (m.info.device == "cuda") {
    if (o.op_times != nullptr) {
      fail(Code::unsupported, "--profile measures the operations of the CPU: add --device cpu");
    }
    // The checks read what a device's memory holds: they are for tensors of the processor.
    return make_cuda_ops(o.dtype, *m.pool);
  }
  std::unique_ptr<Ops> ops = make_cpu_ops(o.dtype, *m.pool, m.isa);
  if (o.check_ops) ops = make_checked_ops(std::move(ops));
  if (o.op_times != nullptr) ops = make_timed_ops(std::move(ops), *o.op_times);
  return ops;
}

}  // namespace

namespace {

// Before memory is planned: what NCCL takes is gone from then on.
void link_devices(LoadedModel& m, const EngineOptions& o) {
  if (m.info.device != "cuda" || m.comm->size() == 1) return;
  const std::shared_ptr<Comm> host = m.comm;
  const size_t most = Arena::matrix_bytes(Dtype::f32, o.max_batch_tokens, m.info.spec.dim);
  m.comm = make_device_comm(
      host, make_cuda_link(*m.ops, {.rank = host->rank(),
                                    .ranks = host->size(),
                                    .most = static_cast<int64_t>(most / sizeof(float)),
                                    .library = o.nccl_library,
                                    .broadcast = [&](Bytes& id) { host->broadcast(id); }}));
}

}  // namespace

std::unique_ptr<LoadedModel> load_model(const EngineOptions& o, Log& log) {
  check_options(o);
  auto m = std::make_unique<LoadedModel>();
  ModelFiles files = open_model(o.model);
  m->source = std::move(files.source);
  m->info.digest = files.digest;
  m->architecture = &architecture_of(files.config.text("model_type"));
  m->info.spec = m->architecture->spec(files.config);
  m->info.spec.attention.kv = o.kv_format;
  m->info.spec.formats = formats_of(o.model, *m->architecture, m->info.spec, *m->source, o.formats);
  m->sites = m->architecture->sites(m->info.spec);

  m->isa = chosen_isa(o.isa);
  m->info.name = o.model;
  m->info.dtype = o.dtype;
  m->comm = o.comm ? o.comm : make_solo_comm();
  m->info.device = chosen_device(o, *m);
  m->info.isa = m->info.device == "cuda" ? "cuda" : to_string(m->isa);
  check_ranks(*m, o);
  m->info.threads =
      o.threads > 0 ? o.threads : std::max(1, physical_cores() / m->comm->local_size());
  m->info.max_total_tokens = longest_sequence(o, m->info.spec);
  bind(*m, o, log);
  m->ops = make_ops(o, *m);
  if (m->ops->memory() != nullptr) log.info("device: {}", cuda_status().text);
  link_devices(*m, o);
  m->placements = place(shape_of(m->info.spec), m->comm->size(), o.expert_parallel);
  check_same(*m, o);
  const ModelShare share(m->info.spec, m->placements[static_cast<size_t>(m->comm->rank())]);
  plan_memory(*m, o, share);
  // Without a window every token of a request is in the cache at once.
  if (m->info.spec.attention.window == 0) {
    m->info.max_total_tokens = std::min(m->info.max_total_tokens, m->memory.kv_tokens);
  }
  log.info("{}", m->memory.to_text());
  load(*m, o, log);
  fold(*m, o, log);
  m->layers.resize(static_cast<size_t>(m->info.spec.layers));
  if (share.own.attention.heads == 0) return m;
  const Tensor block = m->ops->kv_layout(m->memory.kv_blocks, share.own.attention);
  m->kv = std::make_unique<KvCache>(m->info.spec.layers, block, m->ops->memory());
  m->kv->each_buffer([&](std::byte* at, size_t bytes) { m->ops->spread(at, bytes); });
  for (int32_t i = 0; i < m->info.spec.layers; ++i) {
    m->layers[static_cast<size_t>(i)] = m->kv->layer(i);
  }
  return m;
}

namespace {

// With several ranks the rows of a matrix are not all here: they are read from the checkpoint, so
// that every rank comes to the same conclusions. One loader thread calls (core.cpp).
void rows_of_all_ranks(const LoadedModel& m, Tensor y, const Site& site, int64_t first) {
  if (m.folded) {
    fail(Code::unsupported,
         "with several ranks and an adapter merged into the weights, DoRA and whole weights are "
         "not supported: name the merged adapter in requests instead");
  }
  stored_rows(y, {*m.architecture, m.info.spec, *m.source, *m.ops}, site, first);
}

}  // namespace

AdapterTarget adapter_target(const LoadedModel& m) {
  if (m.comm->size() > 1) {
    return {
        &m.sites,
        m.ops.get(),
        [&m](Tensor y, const Site& site, int64_t first) { rows_of_all_ranks(m, y, site, first); },
        m.comm->rank(),
        m.comm->size(),
        [&m](const Site& site, int rank) {
          return share_of(site, m.info.spec, m.placements[static_cast<size_t>(rank)]);
        }};
  }
  return {&m.sites, m.ops.get(), [&m](Tensor y, const Site& site, int64_t first) {
            base_rows(y, m.lm->weights(), m.sites.index, *m.ops, site, first);
          }};
}

}  // namespace lorry
