// What CheckedOps asks of lists of numbers and of plans; aborts where it does not hold.
#pragma once
#include "ops/ops.h"

namespace lorry {

// `size` values of this type, at least.
void check_vector(const char* name, const Tensor& t, Dtype dtype, int64_t size);
// The first `size` of i32 lie in [from, to).
void check_range(const char* name, const Tensor& t, int64_t size, int64_t from, int64_t to);
// `count` groups of `rows` rows together.
void check_groups(const RowGroups& groups, int64_t count, int64_t rows);
void check_spec(const AttentionSpec& s);
// Of the segment's adapter at this site. Single outputs lie in [0, tokens). Returns the rank of the
// pair.
int32_t check_patch(const LoraSite& site, int64_t tokens, const LoraSegment& segment,
                    const LoraPlan& plan);
// Queries of `rows` rows in a cache of `blocks` blocks.
void check_plan(const AttentionPlan& plan, const AttentionSpec& spec, int64_t rows, int64_t blocks);

void check_clamp(const Tensor& x, float limit);
void check_rope(const Tensor& x, const Tensor& cos, const Tensor& sin);
void check_route(const Route& route, const Tensor& scores, const Routing& routing);
// All of it but what `expert` holds.
void check_group(const Route& route, const LoraPlan& plan);
void check_combine(const Tensor& y, const Tensor& d, const Route& route);

}  // namespace lorry
