// A LoRA adapter's folder, loaded for a small Mixtral model as the registry loads it.
// Input: adapter_config.json, and adapter_model.safetensors behind a line "---".
#include "adapters/adapter.h"
#include "adapters/describe.h"
#include "fuzz.h"
#include "models/architecture.h"
#include "models/base_rows.h"
#include "models/source.h"
#include "ops/cpu/cpu_ops.h"

namespace {

using namespace lorry;  // NOLINT

struct World {
  World()
      : files(open_model(LORRY_SOURCE_DIR "/tests/golden/mixtral-base/model")),
        architecture(architecture_of(files.config.text("model_type"))),
        spec(architecture.spec(files.config)),
        sites(architecture.sites(spec)),
        pool(1),
        ops(make_cpu_ops(Dtype::f32, pool)),
        stored{architecture, spec, *files.source, *ops} {
    target.sites = &sites;
    target.ops = ops.get();
    target.base_rows = [this](Tensor y, const Site& site, int64_t first) {
      stored_rows(y, stored, site, first);
    };
    limits.max_bytes = 1 << 20;
    limits.max_rank = 64;
  }

  ModelFiles files;
  const Architecture& architecture;
  Spec spec;
  SiteTable sites;
  ThreadPool pool;
  std::unique_ptr<Ops> ops;
  StoredModel stored;
  AdapterTarget target;
  AdapterLimits limits;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static World world;
  static const fuzz::TemporaryFolder folder;
  const auto parts = fuzz::split(fuzz::text_of(data, size), 2);
  folder.write("adapter_config.json", parts[0]);
  folder.write("adapter_model.safetensors", parts[1]);
  fuzz::may_refuse([&] {
    const auto adapter = load_adapter(folder.path(), world.target, world.limits);
    describe_json(*adapter);
  });
  return 0;
}
