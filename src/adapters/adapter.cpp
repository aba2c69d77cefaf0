#include "adapters/adapter.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

#include "adapters/checked_folder.h"
#include "adapters/dora.h"
#include "adapters/merge.h"
#include "adapters/packing.h"
#include "adapters/share.h"
#include "base/error.h"
#include "weights/slice.h"

namespace lorry {

namespace {

constexpr size_t kNowhere = SIZE_MAX;

size_t gain_bytes(int64_t outputs) {
  return static_cast<size_t>((outputs + kPanel - 1) / kPanel * kPanel) * sizeof(float);
}

bool is_token_rows(const LoraMap& map, int32_t piece) {
  return std::any_of(map.patches.begin(), map.patches.end(),
                     [&](const MappedPatch& p) { return p.token_rows == piece; });
}

// The places of `ids` by rising id.
std::vector<int32_t> ascending(const std::vector<int32_t>& ids) {
  std::vector<int32_t> order(ids.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](int32_t x, int32_t y) {
    return ids[static_cast<size_t>(x)] < ids[static_cast<size_t>(y)];
  });
  return order;
}

}  // namespace

struct AdapterFolder::Files {
  // Where a patch's own parts are in the adapter's memory.
  struct Place {
    size_t gain = 0, tokens = 0;
  };

  AdapterTarget target;
  CheckedFolder from;
  LoraMap own = {};                 // what of from.map this rank packs
  std::vector<size_t> offset = {};  // of each own piece in the adapter's memory
  std::vector<Place> place = {};    // of each own patch
  size_t medusa = 0;                // where the heads are

  const std::vector<MappedPatch>& patches() const { return own.patches; }
  // The patch of the same site, of all ranks.
  const MappedPatch& whole(const MappedPatch& p) const {
    const auto index = target.sites->index;
    return *std::lower_bound(
        from.map.patches.begin(), from.map.patches.end(), p,
        [&](const MappedPatch& x, const MappedPatch& y) { return index(x.site) < index(y.site); });
  }
  const TensorInfo& header(int32_t tensor) const {
    return from.tensors->tensors()[static_cast<size_t>(tensor)];
  }
  const LoraPiece& piece(int32_t i) const { return own.pieces[static_cast<size_t>(i)]; }
  const LoraPiece& whole_piece(int32_t i) const { return from.map.pieces[static_cast<size_t>(i)]; }
  // Requires: loaded.
  Tensor tensor(int32_t i) const { return from.tensors->tensor(header(i)); }
  Tensor dense(int32_t i, std::vector<std::byte>& scratch) const {
    return dense_piece(piece(i), tensor(piece(i).tensor), scratch);
  }
  Tensor whole_dense(int32_t i, std::vector<std::byte>& scratch) const {
    return dense_piece(whole_piece(i), tensor(whole_piece(i).tensor), scratch);
  }
};

AdapterFolder::AdapterFolder() = default;
AdapterFolder::~AdapterFolder() = default;

std::unique_ptr<AdapterFolder> AdapterFolder::make(CheckedFolder from, AdapterTarget target,
                                                   const AdapterLimits& limits) {
  std::unique_ptr<AdapterFolder> result(new AdapterFolder);
  result->files_ = std::make_unique<Files>(Files{std::move(target), std::move(from)});
  result->plan(limits);
  return result;
}

std::unique_ptr<AdapterFolder> AdapterFolder::open(const std::string& folder, AdapterTarget target,
                                                   const AdapterLimits& limits) {
  CheckedFolder from = CheckedFolder::open(folder, folder, target, limits);
  return make(std::move(from), std::move(target), limits);
}

std::unique_ptr<AdapterFolder> AdapterFolder::open_merged(std::span<const MergePart> parts,
                                                          const MergeSpec& spec,
                                                          AdapterTarget target,
                                                          const AdapterLimits& limits) {
  CheckedFolder from = merge_folders(parts, spec, target, limits);
  return make(std::move(from), std::move(target), limits);
}

void AdapterFolder::plan(const AdapterLimits& limits) {
  size_t largest = 0;
  for (int rank = 0; rank < files_->target.ranks; ++rank) {
    if (rank == files_->target.rank) continue;
    largest = std::max(largest, plan_rank(rank, limits));
  }
  packed_bytes_ = std::max(plan_rank(files_->target.rank, limits), largest);
}

// Lays out what a rank packs; returns its bytes. The last one that was laid out counts.
size_t AdapterFolder::plan_rank(int rank, const AdapterLimits& limits) {
  Files& f = *files_;
  const Ops& ops = *f.target.ops;
  size_t bytes_of_all = 0;
  const auto take = [&](size_t bytes) {
    const size_t at = bytes_of_all;
    bytes_of_all += pack_aligned(bytes);
    if (bytes_of_all > static_cast<size_t>(limits.max_bytes)) {
      fail(Code::over_capacity, "{}: takes more than the {} bytes that one adapter may take",
           f.from.tensors->path(), limits.max_bytes);
    }
    return at;
  };
  f.own = share_of(f.from.map, f.target, rank);
  f.place.clear();
  f.offset.assign(f.own.pieces.size(), kNowhere);
  for (const MappedPatch& p : f.patches()) {
    for (const int32_t i : {p.a, p.b, p.weight, p.token_rows}) {
      if (i < 0 || f.offset[static_cast<size_t>(i)] != kNowhere) continue;
      f.offset[static_cast<size_t>(i)] = take(packed_size(f.piece(i), ops));
    }
    Files::Place place;
    if (p.magnitude >= 0) place.gain = take(gain_bytes(p.out));
    if (!p.tokens.empty()) place.tokens = take(p.tokens.size() * sizeof(int32_t));
    f.place.push_back(place);
  }
  if (f.from.medusa) f.medusa = take(f.from.medusa->packed_bytes(rank));
  return bytes_of_all;
}

void Adapter::rebase(std::byte* to) {
  const auto follow = [&]<class T>(const T*& p) {
    if (p == nullptr) return;
    p = reinterpret_cast<const T*>(to + (reinterpret_cast<const std::byte*>(p) - image_));
  };
  for (SitePatch& p : patches_) {
    follow(p.a);
    follow(p.b);
  }
  for (SiteChange& c : changes_) {
    follow(c.weight);
    follow(c.gain);
    follow(c.tokens);
    follow(c.token_rows);
  }
  follow(medusa_.data);
  image_ = to;
}

std::unique_ptr<Adapter> AdapterFolder::read() {
  DeviceMemory* device = files_->target.ops->memory();
  Buffer memory(packed_bytes_, device);
  files_->target.ops->spread(memory.data(), memory.size());
  std::unique_ptr<Adapter> adapter =
      device == nullptr ? read(memory.data()) : read_to_device(memory.data());
  adapter->own_ = std::move(memory);
  return adapter;
}

std::unique_ptr<Adapter> AdapterFolder::read_to_device(std::byte* memory) {
  const Buffer image(packed_bytes_);
  std::unique_ptr<Adapter> adapter = read(image.data());
  files_->target.ops->memory()->write(memory, image.data(), packed_bytes_);
  adapter->rebase(memory);
  return adapter;
}

std::unique_ptr<Adapter> AdapterFolder::read(std::byte* memory) {
  files_->from.load(files_->target);
  std::unique_ptr<Adapter> adapter(new Adapter);
  adapter->image_ = memory;
  adapter->bytes_ = packed_bytes_;
  pack(memory);
  point(*adapter, memory);
  if (MedusaFolder* heads = files_->from.medusa.get()) {
    adapter->medusa_ = heads->read(memory + files_->medusa);
  }
  for (const MappedPatch& p : files_->from.map.patches) {
    adapter->sites_.push_back({p.site, p.module, p.rank, p.scale, p.magnitude >= 0, p.weight >= 0,
                               static_cast<int32_t>(p.tokens.size())});
    adapter->max_rank_ = std::max(adapter->max_rank_, p.rank);
  }
  adapter->digest_ = digest();
  adapter->invocation_tokens_ = files_->from.config.invocation_tokens();
  adapter->base_model_ = files_->from.config.base_model();
  return adapter;
}

// Writes all that patches point to.
void AdapterFolder::pack(std::byte* memory) const {
  const Files& f = *files_;
  const Ops& ops = *f.target.ops;
  std::vector<std::byte> scratch, sorted;
  for (size_t i = 0; i < f.offset.size(); ++i) {
    if (f.offset[i] == kNowhere || is_token_rows(f.own, static_cast<int32_t>(i))) continue;
    const auto index = static_cast<int32_t>(i);
    pack_piece(memory + f.offset[i], f.piece(index).form, f.dense(index, scratch), ops);
  }
  for (size_t i = 0; i < f.patches().size(); ++i) {
    const MappedPatch& p = f.patches()[i];
    if (p.magnitude >= 0) pack_gain(memory + f.place[i].gain, p);
    if (p.tokens.empty()) continue;
    const std::vector<int32_t> order = ascending(p.tokens);
    auto* ids = reinterpret_cast<int32_t*>(memory + f.place[i].tokens);
    for (const int32_t row : order) *ids++ = p.tokens[static_cast<size_t>(row)];
    const Tensor rows = rows_in_order(f.dense(p.token_rows, scratch), order, sorted);
    pack_piece(memory + f.offset[static_cast<size_t>(p.token_rows)], f.piece(p.token_rows).form,
               rows, ops);
  }
}

// The factors m / ||W + sBA|| of DoRA, for the outputs that the rank has; the norms are over the
// inputs of all. W is the adapter's own where it has one.
void AdapterFolder::pack_gain(std::byte* to, const MappedPatch& own_patch) const {
  const Files& f = *files_;
  const MappedPatch& p = f.whole(own_patch);
  const Dtype act = f.target.ops->act();
  const bool embedding = p.site.kind == SiteKind::embed;
  std::vector<std::byte> scratch, whole;
  const auto rounded = [&](LoraPiece piece, std::vector<float>& values) {
    values.resize(static_cast<size_t>(piece.rows * piece.cols));
    const Tensor y = view(values.data(), Dtype::f32, {piece.rows, piece.cols});
    const Tensor source = f.tensor(piece.tensor);
    round_piece(y, dense_piece(piece, source, scratch), piece.form, act);
    return y;
  };
  std::vector<float> left, right;
  LoraPiece across = f.whole_piece(embedding ? p.b : p.a);
  if (embedding) {
    std::swap(across.rows, across.cols);
    std::swap(across.row_stride, across.col_stride);
  }
  DoraMatrix m;
  m.cols = embedding ? p.out : p.in;
  m.right = rounded(across, right);
  m.scale = p.scale;
  const Tensor all_left = rounded(f.whole_piece(embedding ? p.a : p.b), left);
  const Tensor own = p.weight >= 0 ? f.whole_dense(p.weight, whole) : Tensor{};
  const std::vector<Range> all{{0, p.out}};
  const std::vector<Range> outputs =
      f.target.ranks == 1 ? all : f.target.share(p.site, f.target.rank).out;
  std::vector<double> norms;
  for (const Range& r : outputs) {
    const Range of_rows = embedding ? Range{0, p.in} : r;
    m.rows = of_rows.count;
    m.left = rows(all_left, of_rows.first, of_rows.count);
    m.base = [&](int64_t first, Tensor y) {
      first += of_rows.first;
      if (!own) return f.target.base_rows(y, p.site, first);
      round_piece(y, rows(own, first, y.rows()), f.whole_piece(p.weight).form, act);
    };
    const std::vector<double> some = embedding ? column_norms(m) : row_norms(m);
    norms.insert(norms.end(), some.begin(), some.end());
  }
  std::vector<float> magnitude(static_cast<size_t>(p.out));
  const TensorInfo& info = f.header(p.magnitude);
  copy(view(magnitude.data(), Dtype::f32, info.shape), f.tensor(p.magnitude));
  auto* gain = reinterpret_cast<float*>(to);
  const double* norm = norms.data();
  for (const Range& r : outputs) {
    for (auto o = static_cast<size_t>(r.first); o < static_cast<size_t>(r.first + r.count); ++o) {
      *gain = static_cast<float>(double{magnitude[o]} / *norm);
      if (!std::isfinite(*gain)) {
        fail(Code::bad_file, "{}: tensor {}: element {} is {}, to be divided by a norm of {}",
             f.from.tensors->path(), info.name, o, magnitude[o], *norm);
      }
      ++gain;
      ++norm;
    }
  }
}

// Sets the pointers of the adapter's patches, all of them into `memory`.
void AdapterFolder::point(Adapter& adapter, std::byte* memory) const {
  const Files& f = *files_;
  const SiteIndex& index = f.target.sites->index;
  const auto at = [&](int32_t piece) -> std::byte* {
    return piece < 0 ? nullptr : memory + f.offset[static_cast<size_t>(piece)];
  };
  adapter.patches_.resize(static_cast<size_t>(index.size()));
  adapter.changes_.reserve(f.patches().size());
  for (size_t i = 0; i < f.patches().size(); ++i) {
    const MappedPatch& p = f.patches()[i];
    SitePatch& patch = adapter.patches_[static_cast<size_t>(index(p.site))];
    patch.a = at(p.a);
    patch.b = at(p.b);
    patch.rank = p.rank;
    patch.scale = p.scale;
    if (p.magnitude < 0 && p.weight < 0 && p.tokens.empty()) continue;
    SiteChange change;
    change.weight = at(p.weight);
    if (p.magnitude >= 0) change.gain = reinterpret_cast<float*>(memory + f.place[i].gain);
    if (!p.tokens.empty()) {
      change.tokens = reinterpret_cast<int32_t*>(memory + f.place[i].tokens);
      change.token_rows = at(p.token_rows);
      change.n_tokens = static_cast<int32_t>(p.tokens.size());
    }
    adapter.changes_.push_back(change);
    patch.change = &adapter.changes_.back();
    adapter.norms_ = adapter.norms_ || is_norm(p.site.kind);
  }
}

// What is applied (site, rank, scale, and which part of which tensor), then the tensors themselves
// by name, so that neither their order in the file nor the training options in the config count.
Digest AdapterFolder::digest() const {
  const Files& f = *files_;
  Sha256 hash;
  hash.update("lorry adapter 2");
  std::vector<const TensorInfo*> used;
  const auto add_tensor = [&](int32_t tensor) {
    const TensorInfo& info = f.header(tensor);
    hash.update_value(info.name.size());
    hash.update(info.name);
    used.push_back(&info);
  };
  const auto add_piece = [&](int32_t index) {
    hash.update_value(index >= 0);
    if (index < 0) return;
    const LoraPiece& p = f.whole_piece(index);
    add_tensor(p.tensor);
    for (const int64_t x : {p.rows, p.cols, p.offset, p.row_stride, p.col_stride}) {
      hash.update_value(x);
    }
  };
  const auto add_ids = [&](std::span<const int32_t> ids) {
    hash.update_value(ids.size());
    hash.update(std::as_bytes(ids));
  };
  for (const MappedPatch& p : f.from.map.patches) {
    hash.update_value(f.target.sites->index(p.site));
    hash.update_value(p.rank);
    hash.update_value(std::bit_cast<uint32_t>(p.scale));
    for (const int32_t i : {p.a, p.b, p.weight, p.token_rows}) add_piece(i);
    hash.update_value(p.magnitude >= 0);
    if (p.magnitude >= 0) add_tensor(p.magnitude);
    add_ids(p.tokens);
  }
  add_ids(f.from.config.invocation_tokens());
  f.from.tensors->hash(hash, std::move(used));
  if (f.from.medusa) f.from.medusa->hash(hash);
  return hash.finish();
}

std::unique_ptr<Adapter> load_adapter(const std::string& folder, const AdapterTarget& target,
                                      const AdapterLimits& limits) {
  return AdapterFolder::open(folder, target, limits)->read();
}

}  // namespace lorry
