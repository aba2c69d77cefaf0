// OpenAI's dialect: POST /v1/completions and /v1/chat/completions.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "serve/generation.h"
#include "serve/intake.h"

namespace lorry {

// `api`: chat or completions. Throws Error or RequestError. Names of fields that are not known are
// appended to *unknown.
Job openai_job(const Asked& asked, Api api, const Intake& intake,
               std::vector<std::string>* unknown);

std::unique_ptr<Presenter> openai_presenter(const Tokenizer& tokenizer, Api api);

// The adapter that `model` names, unchecked; empty for the base model.
std::string adapter_name_of(const std::string& model, const Intake& intake);

}  // namespace lorry
