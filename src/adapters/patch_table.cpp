#include "adapters/patch_table.h"

#include <utility>

namespace lorry {

void TensorList::bad(int32_t i, const std::string& what, Code code) const {
  fail(code, "{}: tensor {}: {}", file, header(i).name, what);
}

void TensorList::expect(int32_t i, const Shape& shape, const std::string& why) const {
  if (header(i).rank == shape.rank && header(i).shape == shape) return;
  bad(i, fmt::format("expected shape {}{}, found {}", to_string(shape), why,
                     to_string(header(i).shape)));
}

int32_t PatchTable::piece(const LoraPiece& p) {
  std::vector<int32_t>& same = by_tensor_[p.tensor];
  for (const int32_t i : same) {
    if (piece_at(i) == p) return i;
  }
  pieces_.push_back(p);
  same.push_back(static_cast<int32_t>(pieces_.size()) - 1);
  return same.back();
}

MappedPatch& PatchTable::at(const Site& site, const std::string& module) {
  const auto [place, added] = patches_.try_emplace(index_(site));
  if (added) {
    place->second.site = site;
    place->second.module = module;
  }
  return place->second;
}

const MappedPatch* PatchTable::find(const Site& site) const {
  const auto found = patches_.find(index_(site));
  return found == patches_.end() ? nullptr : &found->second;
}

void PatchTable::check_once(int32_t there, int32_t tensor, const char* what) const {
  if (there < 0) return;
  list_.bad(tensor, fmt::format("the same weight is already {} by tensor {}", what,
                                list_.header(piece_at(there).tensor).name));
}

MappedPatch& PatchTable::add_pair(const SitePieces& p, const std::string& module, int32_t rank,
                                  float scale) {
  MappedPatch& patch = at(p.site, module);
  check_once(patch.b, p.b.tensor, "adapted");
  // The embedding's A is turned: a row for each token.
  patch.in = p.site.kind == SiteKind::embed ? p.a.rows : p.a.cols;
  patch.out = p.b.rows;
  patch.a = piece(p.a);
  patch.b = piece(p.b);
  patch.rank = rank;
  patch.scale = scale;
  return patch;
}

void PatchTable::add_weight(const Site& site, const LoraPiece& weight, const std::string& module) {
  MappedPatch& patch = at(site, module);
  check_once(patch.weight, weight.tensor, "replaced");
  patch.weight = piece(weight);
}

LoraMap PatchTable::take() {
  LoraMap map;
  map.pieces = std::move(pieces_);
  for (auto& [index, patch] : patches_) map.patches.push_back(std::move(patch));
  return map;
}

}  // namespace lorry
