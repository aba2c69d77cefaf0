#include "serve/engine_backend.h"

#include "base/error.h"

namespace lorry {

EngineBackend::EngineBackend(Engine& engine) : engine_(engine) {
  if (engine.tokenizer() == nullptr) {
    fail(Code::unsupported, "the model {} has no tokenizer: it can be measured, not served",
         quote(engine.info().name));
  }
}

}  // namespace lorry
