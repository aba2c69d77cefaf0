#include "lorry/model.h"

#include <utility>
#include <vector>

#include "adapters/adapter.h"
#include "base/topology.h"
#include "engine/loaded_model.h"

namespace lorry {

struct Model::Parts {
  explicit Parts(const EngineOptions& options)
      : log({LogLevel::warn}), model(load_model(options, log)) {}

  Log log;
  std::unique_ptr<LoadedModel> model;
  std::vector<std::unique_ptr<Adapter>> adapters;
  std::vector<AdapterView> views;
  AdapterLimits limits;
};

Model::Model(const std::string& folder, const ModelOptions& o) {
  EngineOptions options;
  options.model = folder;
  options.dtype = o.dtype;
  options.threads = o.threads;
  if (o.numa) options.topology = read_topology();
  options.device = o.device;
  options.max_batch_tokens = o.limits.max_tokens;
  options.max_sequences = o.limits.max_sequences;
  options.max_logit_rows = o.limits.max_logit_rows;
  options.max_lora_rank = o.limits.max_lora_rank;
  options.max_medusa_heads = o.limits.max_medusa_heads;
  options.kv_tokens = int64_t{o.kv_blocks} * kBlockTokens;
  parts_ = std::make_unique<Parts>(options);
  parts_->limits.max_rank = o.limits.max_lora_rank;
  parts_->limits.max_medusa_heads = o.limits.max_medusa_heads;
}

Model::~Model() = default;
Model::Model(Model&&) noexcept = default;

int32_t Model::load_adapter(const std::string& folder) {
  const LoadedModel& model = *parts_->model;
  parts_->adapters.push_back(lorry::load_adapter(folder, adapter_target(model), parts_->limits));
  parts_->views.push_back(parts_->adapters.back()->view());
  return static_cast<int32_t>(parts_->views.size()) - 1;
}

ForwardOutput Model::forward(const ForwardInput& input) {
  return parts_->model->lm->forward(input, parts_->model->layers, parts_->views);
}

int32_t Model::vocab() const { return parts_->model->info.spec.vocab; }
int32_t Model::dim() const { return parts_->model->info.spec.dim; }
int64_t Model::max_positions() const { return parts_->model->info.spec.max_positions; }

}  // namespace lorry
