#include "adapters/fused_parameter.h"

namespace lorry {

namespace {

using Form = FusedParameter::Form;
using Piece = LoraPiece::Form;

SiteKind kind_of(Form form, bool second_half) {
  switch (form) {
    case Form::rows_gate:
      return SiteKind::gate;
    case Form::rows_up:
      return SiteKind::up;
    case Form::stacked_gate_up:
      return second_half ? SiteKind::up : SiteKind::gate;
    case Form::plain:
      return SiteKind::router;
    case Form::stacked_down:
    case Form::rows_down_transposed:
      break;
  }
  return SiteKind::down;
}

bool is_stacked(Form form) { return form == Form::stacked_gate_up || form == Form::stacked_down; }

// A [E r, cols] with row e r + k; B [rows, r E] with column k E + e.
void add_stacked(std::vector<SitePieces>& out, const FusedParameter& f, const FusedPair& p,
                 int32_t experts) {
  const int64_t a_cols = p.swapped ? f.out : f.in;
  const int64_t half = site_outputs(f);
  const int64_t b_row = int64_t{p.rank} * experts;
  for (int32_t e = 0; e < experts; ++e) {
    const int64_t a_first = e * p.rank * a_cols;  // row e r of the stored A
    const LoraPiece a = p.swapped ? LoraPiece{p.b, Piece::lora_a, p.rank, f.in, e, experts, b_row}
                                  : LoraPiece{p.a, Piece::lora_a, p.rank, f.in, a_first, a_cols, 1};
    for (int64_t first = 0; first < f.out; first += half) {
      const LoraPiece b =
          p.swapped
              ? LoraPiece{p.a, Piece::lora_b, half, p.rank, a_first + first, 1, a_cols}
              : LoraPiece{p.b, Piece::lora_b, half, p.rank, first * b_row + e, b_row, experts};
      out.push_back({{kind_of(f.form, first > 0), f.layer, e}, a, b});
    }
  }
}

}  // namespace

int64_t site_outputs(const FusedParameter& f) {
  return f.form == Form::stacked_gate_up ? f.out / 2 : f.out;
}

PairShapes pair_shapes(const FusedParameter& f, const FusedPair& p, int32_t experts) {
  if (is_stacked(f.form)) {
    const int64_t all = int64_t{p.rank} * experts;
    return {{all, p.swapped ? f.out : f.in}, {p.swapped ? f.in : f.out, all}};
  }
  if (f.form == Form::plain) return {{p.rank, f.in}, {f.out, p.rank}};
  // The stored matrix of an expert is [F, H], whichever way it is used.
  const bool transposed = f.form == Form::rows_down_transposed;
  const int64_t hidden = transposed ? f.out : f.in;
  return {{p.rank, hidden}, {experts * (transposed ? f.in : f.out), p.rank}};
}

std::vector<SitePieces> pair_pieces(const FusedParameter& f, const FusedPair& p, int32_t experts) {
  std::vector<SitePieces> out;
  if (is_stacked(f.form)) {
    add_stacked(out, f, p, experts);
    return out;
  }
  const LoraPiece whole_a{p.a, Piece::lora_a, p.rank, f.in, 0, f.in, 1};
  if (f.form == Form::plain) {
    out.push_back({{SiteKind::router, f.layer, -1},
                   whole_a,
                   {p.b, Piece::lora_b, f.out, p.rank, 0, p.rank, 1}});
    return out;
  }
  for (int32_t e = 0; e < experts; ++e) {
    const Site site{kind_of(f.form, false), f.layer, e};
    if (f.form == Form::rows_down_transposed) {
      // The stored matrix is W_e [F, H] with y = h W_e, so the delta B_e A of it acts as
      // y = Aᵀ (B_eᵀ h): the roles swap, and the new B is shared by the experts.
      out.push_back({site,
                     {p.b, Piece::lora_a, p.rank, f.in, e * f.in * p.rank, 1, p.rank},
                     {p.a, Piece::lora_b, f.out, p.rank, 0, 1, f.out}});
    } else {
      out.push_back(
          {site, whole_a, {p.b, Piece::lora_b, f.out, p.rank, e * f.out * p.rank, p.rank, 1}});
    }
  }
  return out;
}

Shape whole_shape(const FusedParameter& f, int32_t experts) {
  if (is_stacked(f.form)) return {experts, f.out, f.in};
  if (f.form == Form::plain) return {f.out, f.in};
  if (f.form == Form::rows_down_transposed) return {experts * f.in, f.out};
  return {experts * f.out, f.in};
}

std::vector<SiteMatrix> whole_pieces(const FusedParameter& f, int32_t tensor, int32_t experts) {
  std::vector<SiteMatrix> all;
  const int64_t out = site_outputs(f);
  if (f.form == Form::plain) {
    return {{{SiteKind::router, f.layer, -1}, {tensor, Piece::matrix, out, f.in, 0, f.in, 1}}};
  }
  for (int32_t e = 0; e < experts; ++e) {
    const int64_t offset = e * f.out * f.in;
    for (int64_t first = 0; first < f.out; first += out) {
      const Site site{kind_of(f.form, first > 0), f.layer, e};
      const bool turned = f.form == Form::rows_down_transposed;
      all.push_back({site,
                     {tensor, Piece::matrix, out, f.in, offset + first * f.in, turned ? 1 : f.in,
                      turned ? f.out : 1}});
    }
  }
  return all;
}

}  // namespace lorry
