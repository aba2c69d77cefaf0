#include "cli/preview.h"

#include <set>

#include "base/error.h"
#include "base/system.h"
#include "engine/memory_plan.h"
#include "models/base_rows.h"
#include "models/source.h"
#include "models/synthetic.h"
#include "ops/cpu/cpu_ops.h"
#include "weights/slice.h"

namespace lorry {

namespace {

// Every tensor that the loader would read.
std::vector<Slice> slices_of(const Architecture& architecture, const Spec& spec,
                             const Checkpoint& checkpoint) {
  const ModelSlices model = architecture.model(spec);
  std::vector<Slice> slices = {model.embed, model.final_norm, model.head};
  for (int32_t i = 0; i < spec.layers; ++i) {
    const LayerSlices l =
        architecture.layer(spec, i, [&](std::string_view name) { return checkpoint.has(name); });
    slices.insert(slices.end(), {l.attn_norm, l.ffn_norm, l.o, l.router});
    slices.insert(slices.end(), l.qkv.begin(), l.qkv.end());
    for (const ExpertSlices& e : l.experts) slices.insert(slices.end(), {e.gate, e.up, e.down});
  }
  return slices;
}

void check_tensors(Preview& p) {
  Checkpoint& checkpoint = *p.parts.checkpoint;
  std::set<std::string> names;
  for (const Slice& s : slices_of(*p.parts.architecture, p.spec, checkpoint)) {
    checkpoint.tensor(s.name, s.shape);
    names.insert(s.name);
  }
  p.tensors = static_cast<int64_t>(names.size());
  p.file_bytes = checkpoint.total_bytes();
  p.digest = to_hex(checkpoint.digest());
}

// y f32 <- rows of the base matrix of a site, rounded to what the backend would compute with.
void stored_rows(Tensor y, const Preview& p, const Site& site, int64_t first) {
  const LoadedModel& m = p.parts;
  const auto source = m.checkpoint ? checkpoint_source(*m.checkpoint) : random_source();
  const Slice s = slice_of(*m.architecture, p.spec, site,
                           [&](std::string_view name) { return source->has(name); });
  const Tensor t = source->tensor(s.name, s.shape);
  Tensor part = view(t.data, t.dtype, {t.shape.size() / s.shape[-1], s.shape[-1]});
  part = rows(part, s.first, s.count);
  std::vector<std::byte> act(static_cast<size_t>(y.shape.size() * size_of(m.ops->act())));
  const Tensor rounded = view(act.data(), is_norm(site.kind) ? Dtype::f32 : m.ops->act(), y.shape);
  if (s.transposed) {
    copy_transposed(rounded, columns(part, first, y.rows()));
  } else {
    copy(rounded, rows(part, first, y.rows()));
  }
  copy(y, rounded);
}

}  // namespace

Preview preview_model(const EngineOptions& options) {
  Preview p;
  if (!is_synthetic(options.model)) {
    p.parts.checkpoint = std::make_unique<Checkpoint>(Checkpoint::open(options.model));
  }
  const Config config = p.parts.checkpoint
                            ? p.parts.checkpoint->config()
                            : Config::parse(synthetic_config(options.model), options.model);
  p.parts.architecture = &architecture_of(config.text("model_type"));
  p.spec = p.parts.architecture->spec(config);
  p.sites = p.parts.architecture->sites(p.spec);
  if (p.parts.checkpoint) check_tensors(p);
  p.parts.pool = std::make_unique<ThreadPool>(1);
  p.parts.ops = make_cpu_ops(options.dtype, *p.parts.pool);
  try {
    p.memory = plan_memory(options, p.spec, *p.parts.ops, available_memory());
  } catch (const Error& e) {
    if (e.code() != Code::over_capacity) throw;
    p.does_not_fit = e.what();
  }
  return p;
}

std::unique_ptr<Adapter> preview_adapter(const Preview& model, const std::string& folder,
                                         int32_t max_rank) {
  const AdapterTarget target{
      &model.sites, model.parts.ops.get(),
      [&model](Tensor y, const Site& site, int64_t first) { stored_rows(y, model, site, first); }};
  AdapterLimits limits;
  limits.max_rank = max_rank;
  limits.max_medusa_heads = 16;
  return load_adapter(folder, target, limits);
}

}  // namespace lorry
