#include <array>

#include "base/error.h"
#include "models/architecture.h"

namespace lorry {

const Architecture& architecture_of(std::string_view model_type) {
  const std::array<const Architecture*, 2> all{&mixtral_architecture(), &dbrx_architecture()};
  std::string known;
  for (const Architecture* a : all) {
    if (a->is(model_type)) return *a;
    known += fmt::format("{}{}", known.empty() ? "" : ", ", a->model_type());
  }
  fail(Code::unsupported, "model_type \"{}\" is not supported; Lorry serves: {}", model_type,
       known);
}

}  // namespace lorry
