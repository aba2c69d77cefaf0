// LoRAX's dialect: POST /generate, /generate_stream and the compatible form at / and /invocations.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "serve/generation.h"
#include "serve/intake.h"

namespace lorry {

enum class LoraxForm { generate, generate_stream, compat };

// Throws Error or RequestError. Names of fields that are not known are appended to *unknown.
Job lorax_job(const Asked& asked, LoraxForm form, const Intake& intake,
              std::vector<std::string>* unknown);

std::unique_ptr<Presenter> lorax_presenter(const Tokenizer& tokenizer);

}  // namespace lorry
