// The adapter that a request asks for, from its fields. Pure functions; the workers call them.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "adapters/adapter_ref.h"
#include "base/json.h"
#include "serve/fields.h"

namespace lorry {

// LoRAX's name for no adapter at all, also where the server has a default one.
inline constexpr std::string_view kBaseModelId = "__base_model__";

// {ids, weights, merge_strategy, density, majority_sign_method, seed}: LoRAX's merged_adapters.
// `field` is the name in messages. Sources and tokens are left as they are by default.
// Throws RequestError: LoRAX's sentences for ids and weights.
AdapterRef read_merge(const json::value& value, std::string_view field);

// [{id, weight = 1}, ...]: the weighted sum of the adapters' deltas. Throws RequestError.
AdapterRef read_weighted(const json::value& value, std::string_view field);

// `name`: of one adapter, from adapter_id or model; empty where the request names none: then the
// server's default. `bearer`: the token of the request's Authorization header, or empty.
// Throws RequestError for names out of the grammar and sources that the server does not have.
AdapterRef adapter_of(const Fields& fields, Api api, const std::string& name,
                      std::string_view bearer, const AdapterPolicy& policy);

}  // namespace lorry
