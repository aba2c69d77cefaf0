#include "cli/preview.h"

#include <set>

#include "base/error.h"
#include "base/system.h"
#include "engine/memory_plan.h"
#include "models/base_rows.h"
#include "models/loader.h"
#include "models/source.h"
#include "models/synthetic.h"
#include "ops/cpu/cpu_ops.h"

namespace lorry {

namespace {

// Every tensor that the loader would read.
std::vector<Slice> slices_of(const Architecture& architecture, const Spec& spec,
                             const TensorSource& source) {
  const ModelSlices model = architecture.model(spec);
  std::vector<Slice> slices = {model.embed, model.final_norm, model.head};
  for (int32_t i = 0; i < spec.layers; ++i) {
    const LayerSlices l =
        architecture.layer(spec, i, [&](std::string_view name) { return source.has(name); });
    slices.insert(slices.end(), {l.attn_norm, l.ffn_norm, l.o, l.router});
    slices.insert(slices.end(), l.qkv.begin(), l.qkv.end());
    for (const ExpertSlices& e : l.experts) slices.insert(slices.end(), {e.gate, e.up, e.down});
  }
  return slices;
}

void check_tensors(Preview& p) {
  TensorSource& source = *p.parts.source;
  std::set<std::string> names;
  for (const Slice& s : slices_of(*p.parts.architecture, p.spec, source)) {
    if (source.quantised(s.name)) {
      source.matrix(s.name, s.shape.size() / s.shape[-1], s.shape[-1]);
    } else {
      source.tensor(s.name, s.shape);
    }
    names.insert(s.name);
  }
  p.tensors = static_cast<int64_t>(names.size());
}

}  // namespace

Preview preview_model(const EngineOptions& options) {
  Preview p;
  ModelFiles files = open_model(options.model);
  p.parts.source = std::move(files.source);
  p.digest = files.digest;
  p.parts.architecture = &architecture_of(files.config.text("model_type"));
  p.spec = p.parts.architecture->spec(files.config);
  p.sites = p.parts.architecture->sites(p.spec);
  p.spec.attention.kv = options.kv_format;
  TensorSource& source = *p.parts.source;
  p.spec.formats =
      formats_of(options.model, *p.parts.architecture, p.spec, source, options.formats);
  p.parts.pool = std::make_unique<ThreadPool>(1);
  p.parts.ops = make_cpu_ops(options.dtype, *p.parts.pool);
  p.file_bytes = source.file_bytes();
  if (const PackedFile* packed = source.packed()) {
    p.weights = load_weights(*p.parts.architecture, p.spec, source, *p.parts.ops);
    check_unused(source, *p.parts.architecture, p.spec, options.model);
    p.tensors = static_cast<int64_t>(packed->info().pieces.size());
  } else if (!is_synthetic(options.model)) {
    check_tensors(p);
  }
  try {
    const size_t weights = weight_bytes(*p.parts.architecture, p.spec, source, *p.parts.ops);
    p.memory = plan_memory(options, p.spec, *p.parts.ops, weights, available_memory());
  } catch (const Error& e) {
    if (e.code() != Code::over_capacity) throw;
    p.does_not_fit = e.what();
  }
  return p;
}

std::unique_ptr<Adapter> preview_adapter(const Preview& model, const std::string& folder,
                                         int32_t max_rank) {
  const LoadedModel& parts = model.parts;
  const StoredModel stored{*parts.architecture, model.spec, *parts.source, *parts.ops};
  const bool loaded = parts.source->packed() != nullptr;
  const AdapterTarget target{
      &model.sites, parts.ops.get(), [&](Tensor y, const Site& site, int64_t first) {
        loaded ? base_rows(y, model.weights, model.sites.index, *parts.ops, site, first)
               : stored_rows(y, stored, site, first);
      }};
  AdapterLimits limits;
  limits.max_rank = max_rank;
  limits.max_medusa_heads = 16;
  return load_adapter(folder, target, limits);
}

}  // namespace lorry
