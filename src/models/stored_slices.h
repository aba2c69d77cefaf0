// How a model's matrices are stored where they come from, and how a rank's part of each will be
// kept: a checkpoint has them as tensors, plain or quantised, a packed file (weights/packed_file.h)
// as pieces, of which a rank takes its part as it takes that of a tensor.
#pragma once
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "models/architecture.h"
#include "models/source.h"
#include "ops/ops.h"

namespace lorry {

// The name of a piece of a layer: "layers.3.qkv".
std::string piece_name(int32_t layer, std::string_view what);

// Where the tensors of a model are in the source. Of a packed one they have the names of pieces,
// q, k and v are one slice, and an expert's matrix is of shape [experts, outputs, inputs], gate_up
// with all outputs of gate before those of up (in the file they are interleaved).
ModelSlices model_slices(const Architecture& architecture, const Spec& spec,
                         const TensorSource& source);
LayerSlices layer_slices(const Architecture& architecture, const Spec& spec,
                         const TensorSource& source, int32_t layer);

// The slices of all experts of a layer, which are stored alike.
std::vector<Slice> gates_and_ups(const LayerSlices& layer);
std::vector<Slice> downs(const LayerSlices& layer);

// Whether the inputs of a slice begin and end where groups of so many inputs do; 0: there are none.
bool has_whole_scales(const Slice& slice, int64_t group);

// How a linear will be kept: groups of `per_group` parts one below the other. `wanted` is for those
// of a source that is not quantised by itself. Plain is what cannot be kept quantised: parts of
// which some are not, that have different orders, or whose scales would be cut.
WeightFormat format_of(TensorSource& source, std::span<const Slice> parts, size_t per_group,
                       WeightFormat wanted);

// What a slice holds of a quantised piece; from.data is null where the piece is a plain one.
// Requires: source.packed(). Throws Error(bad_file) when config.json needs another piece.
PackedRows packed_rows(TensorSource& source, const Ops& ops, const Slice& slice);

// y [rows.n, in] f32 <- the rows, as linear() multiplies by them: as many inputs as y has columns.
void unpack_rows(Tensor y, const Ops& ops, const PackedRows& rows);

}  // namespace lorry
