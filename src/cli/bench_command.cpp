// `lorry bench`: speed as a fraction of what the machine can do.
#include <cstdio>

#include <CLI/CLI.hpp>
#include <boost/json/serialize.hpp>
#include <boost/json/value.hpp>

#include "base/error.h"
#include "base/json.h"
#include "base/system.h"
#include "cli/bench.h"
#include "cli/commands.h"
#include "cli/model_flags.h"
#include "cli/progress_line.h"
#include "cli/quantize_flag.h"
#include "cli/ranks.h"
#include "cli/values.h"
#include "models/synthetic.h"
#include "ops/cuda/cuda_ops.h"

namespace lorry {

namespace {

struct BenchFlags {
  std::string model = "synthetic:mini-mixtral";
  std::string kind = "all";
  std::vector<int32_t> batches;
  std::vector<int32_t> adapters{0};
  int32_t rank = 16, tokens = 512, context = 64, reps = 7, threads = 0;
  std::string dtype = "bfloat16", isa, numa = "auto", device = "auto";
  QuantizeFlags quantize;
  bool profile = false;
  RankFlags ranks;
  std::string kv_dtype;
  bool map_weights = false;
  bool warm = false;
  bool as_json = false;
};

std::vector<BenchCase> cases_of(const BenchFlags& f) {
  std::vector<BenchCase> cases;
  const auto add = [&](BenchCase::Kind kind, std::vector<int32_t> batches) {
    for (const int32_t batch : batches) {
      for (const int32_t adapters : f.adapters) {
        // An adapter needs a sequence of its own.
        const int32_t b = kind == BenchCase::Kind::prefill ? std::max(batch, adapters) : batch;
        cases.push_back({kind, b, adapters, f.rank, f.tokens, f.context, f.reps, f.warm});
      }
    }
  };
  using Batches = std::vector<int32_t>;
  if (f.kind != "decode") {
    add(BenchCase::Kind::prefill, f.batches.empty() ? Batches{1} : f.batches);
  }
  if (f.kind != "prefill") {
    add(BenchCase::Kind::decode, f.batches.empty() ? Batches{1, 4, 16, 64} : f.batches);
  }
  return cases;
}

EngineOptions options_for(const BenchFlags& f, const std::string& folder,
                          const std::vector<BenchCase>& cases) {
  EngineOptions o;
  o.model = folder;
  o.dtype = parse_dtype(f.dtype);
  o.formats = parse_quantize(f.quantize, o.format_note);
  o.kv_format = parse_kv_format(f.kv_dtype, o.dtype);
  o.map_weights = f.map_weights;
  o.threads = f.threads;
  o.topology = parse_numa(f.numa);
  o.isa = f.isa;
  o.device = f.device;
  o.max_sequences = 1;
  o.max_batch_tokens = 1;
  o.max_lora_rank = f.rank;
  o.kv_tokens = int64_t{2} * kBlockTokens;  // no cache is smaller
  o.adapter_memory = 1;                     // the benchmark's adapters are its own
  for (const BenchCase& c : cases) {
    const BenchSize size = size_of_case(c);
    o.max_sequences = std::max(o.max_sequences, size.sequences);
    o.max_batch_tokens = std::max(o.max_batch_tokens, size.rows);
    o.kv_tokens = std::max(o.kv_tokens, size.kv_tokens);
  }
  o.max_logit_rows = o.max_sequences;
  return o;
}

// Of an element of BenchResult::op_ms.
std::string_view op_name(size_t i) {
  return i < OpTimes::count ? OpTimes::name(static_cast<OpTimes::Op>(i)) : "rest";
}

json::object to_json(const BenchResult& r, const BenchFlags& f) {
  const std::string& dtype = f.dtype;
  const bool prefill = r.what.kind == BenchCase::Kind::prefill;
  json::object ops;
  for (size_t i = 0; i < r.op_ms.size(); ++i) ops[op_name(i)] = r.op_ms[i];
  return {{"kind", prefill ? "prefill" : "decode"},
          {"dtype", dtype},
          {"quantize",
           f.quantize.format.empty() ? json::value(nullptr) : json::value(f.quantize.format)},
          {"kv_cache_dtype", f.kv_dtype.empty() ? "auto" : f.kv_dtype},
          {"batch", r.what.batch},
          {"context", prefill ? json::value(nullptr) : json::value(r.what.context)},
          {"adapters", r.what.adapters},
          {"rank", r.what.adapters > 0 ? json::value(r.what.rank) : json::value(nullptr)},
          {"warm", r.what.warm},
          {"seconds", r.seconds},
          {"tokens_per_s", r.tokens_per_s},
          {"bytes", r.bytes},
          {"kv_bytes", r.kv_bytes},
          {"gb_per_s", r.gb_per_s},
          {"gflops", r.gflops},
          {"of_roofline", dtype == "float32" ? json::value(nullptr) : json::value(r.of_roofline)},
          {"op_ms", ops.empty() ? json::value(nullptr) : json::value(std::move(ops))},
          {"logits_sha256", r.logits_sha256}};
}

json::object to_json(const Probe& p) {
  return {{"bf16_gflops", p.bf16_gflops}, {"int8_gops", p.int8_gops}, {"read_gb_s", p.read_gb_s}};
}

void print(const BenchResult& r) {
  const bool prefill = r.what.kind == BenchCase::Kind::prefill;
  std::printf("%-8s %5d %8d %5d %10.1f %8.0f %8.0f %8.1f %8.0f %8.1f %8.0f %9.1f%%  %.16s\n",
              prefill ? "prefill" : "decode", r.what.batch, r.what.adapters,
              r.what.adapters > 0 ? r.what.rank : 0, r.tokens_per_s, r.bytes * 1e-6,
              r.kv_bytes * 1e-6, r.gb_per_s, r.gflops, r.probe.read_gb_s, r.probe.bf16_gflops,
              100 * r.of_roofline, r.logits_sha256.c_str());
  if (!r.op_ms.empty()) {
    std::printf("         ms a step:");
    for (size_t i = 0; i < r.op_ms.size(); ++i) {
      std::printf(" %.*s %.2f", static_cast<int>(op_name(i).size()), op_name(i).data(), r.op_ms[i]);
    }
    std::printf("\n");
  }
  std::fflush(stdout);
}

std::string nodes_text(const ModelInfo& info) {
  return info.numa_nodes == 1 ? "" : " on " + std::to_string(info.numa_nodes) + " NUMA nodes";
}

int run_bench(const BenchFlags& f) {
  const std::vector<BenchCase> cases = cases_of(f);
  Log log({f.as_json ? LogLevel::warn : LogLevel::info});
  OpTimes times;
  const ModelPlace place = find_model(f.model);
  EngineOptions options = options_for(f, place.folder, cases);
  if (f.profile) options.op_times = &times;
  // Every rank runs the benchmark; what it has to say is said once.
  Ranks ranks(f.ranks);
  ranks.set(options);
  if (options.comm && f.adapters != std::vector<int32_t>{0}) {
    fail(Code::unsupported,
         "--adapters with --num-shard: the benchmark's own adapters are of one "
         "rank; leave one of the two out");
  }
  ProgressLine line(progress_place(ranks.leads()));
  options.progress = line.sink();
  const auto model = load_model(options, log);
  line.end();
  const ThreadBinding bound = model->pool->bind_caller();
  if (!ranks.leads()) {
    for (const BenchCase& c : cases) run_case(*model, c, options.op_times);
    options.comm->end();
    return 0;
  }
  if (!f.as_json) {
    std::printf("%s, %s%s, %d threads%s, %s, %s\n", f.model.c_str(),
                format_name(model->info.spec.formats.linears, model->info.dtype).c_str(),
                model->info.spec.attention.kv == KvFormat::int8 ? ", KV in int8" : "",
                model->info.threads, nodes_text(model->info).c_str(), model->info.isa.c_str(),
                model->info.device == "cuda" ? cuda_status().text.c_str() : cpu_name().c_str());
    std::printf("%-8s %5s %8s %5s %10s %8s %8s %8s %8s %8s %8s %10s  %s\n", "kind", "batch",
                "adapters", "rank", "tok/s", "MB", "KV MB", "GB/s", "GFLOP/s", "rd GB/s", "peak",
                "roofline", "logits");
  }
  json::array results;
  Probe probe;
  for (const BenchCase& c : cases) {
    const BenchResult r = run_case(*model, c, options.op_times);
    probe = r.probe;
    if (f.as_json) {
      results.push_back(to_json(r, f));
    } else {
      print(r);
    }
  }
  if (f.as_json) {
    const json::object all{{"model", f.model},
                           {"cpu", cpu_name()},
                           {"isa", model->info.isa},
                           {"threads", model->info.threads},
                           {"numa_nodes", model->info.numa_nodes},
                           {"probe", to_json(probe)},
                           {"results", std::move(results)}};
    std::printf("%s\n", json::serialize(all).c_str());
  }
  ranks.finish();
  return 0;
}

}  // namespace

namespace {

void add_what(CLI::App& app, BenchFlags& f) {
  const char* group = "Steps";
  app.add_option("--kind", f.kind, "What a step does (default: all)")
      ->check(CLI::IsMember({"all", "prefill", "decode"}).description(""))
      ->group(group)
      ->type_name("all|prefill|decode");
  const auto number = [&](const char* name, auto& value, const char* help, int32_t min,
                          int32_t max) {
    accept_range(app.add_option(name, value, help)->group(group), min, max);
  };
  number("--batch", f.batches,
         "Sequences in a step; several allowed (default: prefill 1; decode 1 4 16 64)", 1, 4096);
  number("--adapters", f.adapters,
         "Distinct adapters over all linears; several allowed (default: 0)", 0, 4096);
  number("--rank", f.rank, "Rank of each adapter (default: 16)", 1, 512);
  number("--tokens", f.tokens, "Rows of a prefill step, over all sequences (default: 512)", 1,
         65536);
  number("--context", f.context,
         "Tokens of a sequence before the decode steps, in random keys and values (default: 64)", 1,
         131072);
  number("--reps", f.reps, "Steps measured; the median counts (default: 7)", 1, 1000);
  app.add_flag("--warm", f.warm,
               "Run the steps back to back, as a server does, and count their mean; else the "
               "machine is probed between two steps, which leaves nothing of the model in the "
               "caches")
      ->group(group);
}

}  // namespace

Command add_bench(CLI::App& lorry) {
  auto flags = std::make_shared<BenchFlags>();
  CLI::App& app = *lorry.add_subcommand(
      "bench", "Measure speed, as a fraction of what the machine can do at that moment");
  const char* group = "Model and machine";
  app.add_option("--model", flags->model,
                 "Folder, or one with random weights (default: synthetic:mini-mixtral)")
      ->group(group)
      ->type_name(kModel);
  app.add_option("--dtype", flags->dtype, "Weights and activations (default: bfloat16)")
      ->check(CLI::IsMember({"bfloat16", "float16", "float32"}).description(""))
      ->group(group)
      ->type_name(kDtypes);
  add_quantize_flags(app, flags->quantize, group);
  add_kv_dtype_flag(app, flags->kv_dtype, group);
  add_map_flag(app, flags->map_weights, group);
  accept_range(
      app.add_option("--threads", flags->threads, "Compute threads (default: physical cores)")
          ->group(group),
      0, 4096);
  app.add_option("--isa", flags->isa, "Instructions to compute with (default: the best there is)")
      ->group(group)
      ->type_name(kIsas);
  add_numa_flag(app, flags->numa, group);
  add_device_flag(app, flags->device, group);
  add_what(app, *flags);
  add_rank_flags(app, flags->ranks);
  const char* output = "Output";
  app.add_flag("--profile", flags->profile, "Print what the kinds of operations take of a step")
      ->group(output);
  app.add_flag("--json", flags->as_json, "One JSON object on standard output")->group(output);
  app.footer(
      "Examples\n"
      "  lorry bench --kind decode --batch 16 --adapters 16 --rank 16\n"
      "  lorry bench --model /models/mixtral --quantize int8 --json");
  return {&app, [flags] { return run_bench(*flags); }};
}

}  // namespace lorry
