// A model's config.json: its values, its quantisation and the tensors that it asks for.
#include "fuzz.h"
#include "models/architecture.h"
#include "models/common_config.h"
#include "weights/config.h"
#include "weights/quant_scheme.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace lorry;  // NOLINT
  fuzz::may_refuse([&] {
    const Config config = Config::parse(fuzz::text_of(data, size), "/nonexistent/config.json");
    fuzz::may_refuse([&] { read_quant_scheme(config); });
    const Architecture& architecture = architecture_of(config.text("model_type"));
    const Spec spec = architecture.spec(config);
    architecture.model(spec);
    // Lists of all their sites: a checkpoint of that size would have to exist first.
    if (spec.sites().size() > 20'000) return;
    architecture.layer(spec, spec.layers - 1, [](std::string_view) { return true; });
    architecture.layer(spec, 0, [](std::string_view) { return false; });
    architecture.sites(spec);
  });
  return 0;
}
