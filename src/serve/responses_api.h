// OpenAI's POST /v1/responses, of text and calls of functions. Nothing is kept of an answer, so
// what refers to an earlier one is refused: the whole conversation comes as `input`.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "serve/generation.h"
#include "serve/intake.h"

namespace lorry {

// As openai_job().
Job response_job(const Asked& asked, const Intake& intake, std::vector<std::string>* unknown);

std::unique_ptr<Presenter> response_presenter(const Tokenizer& tokenizer);

}  // namespace lorry
