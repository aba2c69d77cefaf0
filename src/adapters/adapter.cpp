#include "adapters/adapter.h"

#include <algorithm>
#include <bit>

#include "adapters/merge.h"
#include "adapters/tensor_set.h"
#include "base/error.h"
#include "base/files.h"

namespace lorry {

namespace {

constexpr size_t kAlign = 64;

size_t aligned(size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

// The one weight file of the folder. Names what to do where there is another format instead.
std::string weight_file(const std::string& folder) {
  std::string path = join_path(folder, "adapter_model.safetensors");
  if (file_exists(path)) return path;
  if (file_exists(join_path(folder, "adapter_model.bin"))) {
    fail(Code::unsupported,
         "{}: holds only adapter_model.bin: pickle adapters are refused; convert to safetensors",
         folder);
  }
  fail(Code::not_found, "{}: expected adapter_model.safetensors, found none", folder);
}

// Copies a strided piece to a dense matrix of the same type in `scratch`.
template <class T>
Tensor gather(const LoraPiece& p, const Tensor& source, std::vector<std::byte>& scratch) {
  scratch.resize(static_cast<size_t>(p.rows * p.cols) * sizeof(T));
  T* out = reinterpret_cast<T*>(scratch.data());
  const T* from = reinterpret_cast<const T*>(source.data) + p.offset;
  for (int64_t i = 0; i < p.rows; ++i) {
    for (int64_t j = 0; j < p.cols; ++j) {
      out[i * p.cols + j] = from[i * p.row_stride + j * p.col_stride];
    }
  }
  return view(out, source.dtype, {p.rows, p.cols});
}

Tensor dense_piece(const LoraPiece& p, const Tensor& source, std::vector<std::byte>& scratch) {
  if (p.col_stride == 1) {
    Tensor t = view(source.data + p.offset * size_of(source.dtype), source.dtype, {p.rows, p.cols});
    t.pitch = p.row_stride;
    return t;
  }
  return size_of(source.dtype) == 4 ? gather<uint32_t>(p, source, scratch)
                                    : gather<uint16_t>(p, source, scratch);
}

// The number of tokens that the model's output layer tells apart.
int64_t vocabulary(const SiteTable& table) {
  for (const SiteInfo& s : table.sites) {
    if (s.site.kind == SiteKind::lm_head) return s.out;
  }
  LORRY_CHECK(false, "a model without an output layer");
}

void check_invocation(const PeftConfig& config, const SiteTable& table) {
  const int64_t vocab = vocabulary(table);
  for (const int32_t id : config.invocation_tokens()) {
    if (id < vocab) continue;
    fail(Code::bad_file,
         "{}: alora_invocation_tokens holds {}; expected token ids of the model, 0 to {}",
         config.path(), id, vocab - 1);
  }
}

template <class T>
void hash_value(Sha256& hash, const T& value) {
  hash.update(std::as_bytes(std::span(&value, 1)));
}

// The headers of one folder, checked.
MergeSource open_source(const MergePart& part, const AdapterTarget& target,
                        const AdapterLimits& limits) {
  LORRY_CHECK(target.sites != nullptr && target.ops != nullptr);
  const std::string& folder = part.folder;
  if (!is_directory(folder)) fail(Code::not_found, "{}: no such folder", folder);
  const std::string config_path = join_path(folder, "adapter_config.json");
  if (!file_exists(config_path)) {
    const bool medusa = file_exists(join_path(folder, "config.json"));
    fail(medusa ? Code::unsupported : Code::not_found, "{}: expected adapter_config.json, found {}",
         folder, medusa ? "config.json: this is no LoRA adapter" : "none");
  }
  PeftConfig config = PeftConfig::read(config_path, limits.max_rank);
  check_invocation(config, *target.sites);
  std::unique_ptr<TensorSet> tensors = open_tensors(weight_file(folder), limits.max_bytes);
  LoraMap map = map_lora(config, *target.sites, tensors->tensors(), tensors->path());
  return {part.label, part.weight, std::move(config), std::move(tensors), std::move(map)};
}

}  // namespace

struct AdapterFolder::Files {
  AdapterTarget target;
  PeftConfig config;
  std::unique_ptr<TensorSet> weights;  // loaded by read()
  LoraMap map;
  std::vector<size_t> offset = {};  // of each piece in the adapter's memory
};

AdapterFolder::AdapterFolder() = default;
AdapterFolder::~AdapterFolder() = default;

std::unique_ptr<AdapterFolder> AdapterFolder::open(const std::string& folder, AdapterTarget target,
                                                   const AdapterLimits& limits) {
  MergeSource source = open_source({folder, 1, folder}, target, limits);
  std::unique_ptr<AdapterFolder> result(new AdapterFolder);
  result->files_ = std::make_unique<Files>(Files{std::move(target), std::move(source.config),
                                                 std::move(source.tensors), std::move(source.map)});
  result->plan(limits);
  return result;
}

std::unique_ptr<AdapterFolder> AdapterFolder::open_merged(std::span<const MergePart> parts,
                                                          const MergeSpec& spec,
                                                          AdapterTarget target,
                                                          const AdapterLimits& limits) {
  AdapterRef ref;
  ref.is_merge = true;
  ref.merge = spec;
  std::vector<float> weights;
  for (const MergePart& p : parts) {
    ref.parts.push_back({p.label, AdapterSource::local, "", p.weight});
    weights.push_back(p.weight);
  }
  check_merge(parts.size(), weights, spec);
  std::vector<MergeSource> sources;
  int64_t bytes = 0;
  for (const MergePart& p : parts) {
    sources.push_back(open_source(p, target, limits));
    bytes += sources.back().tensors->bytes();
    if (bytes > limits.max_bytes) {
      fail(Code::over_capacity, "{}: the files are larger than {} bytes together", ref.label(),
           limits.max_bytes);
    }
  }
  MergePlan merge =
      plan_merge(sources, spec, target.sites->index, {limits.max_bytes, limits.max_rank});
  PeftConfig config = std::move(sources.front().config);
  LoraMap map = std::move(merge.map);
  std::unique_ptr<AdapterFolder> result(new AdapterFolder);
  result->files_ = std::make_unique<Files>(Files{
      std::move(target), std::move(config),
      std::make_unique<MergedTensors>(ref.label(), std::move(sources), spec, std::move(merge)),
      std::move(map)});
  result->plan(limits);
  return result;
}

void AdapterFolder::plan(const AdapterLimits& limits) {
  const Ops& ops = *files_->target.ops;
  for (const LoraPiece& p : files_->map.pieces) {
    files_->offset.push_back(packed_bytes_);
    packed_bytes_ +=
        aligned(p.is_b ? ops.lora_b_bytes(p.rows, p.cols) : ops.lora_a_bytes(p.rows, p.cols));
    if (packed_bytes_ > static_cast<size_t>(limits.max_bytes)) {
      fail(Code::over_capacity, "{}: takes more than the {} bytes that one adapter may take",
           files_->weights->path(), limits.max_bytes);
    }
  }
  packed_bytes_ = Buffer::size_for(packed_bytes_);
}

std::unique_ptr<Adapter> AdapterFolder::read() {
  files_->weights->load();
  const TensorSet& file = *files_->weights;
  check_base_copies();

  std::unique_ptr<Adapter> adapter(new Adapter);
  adapter->memory_ = Buffer(packed_bytes_);
  std::byte* memory = adapter->memory_.data();
  std::vector<std::byte> scratch;
  const LoraMap& map = files_->map;
  for (size_t i = 0; i < map.pieces.size(); ++i) {
    const LoraPiece& p = map.pieces[i];
    const Tensor source = file.tensor(file.tensors()[static_cast<size_t>(p.tensor)]);
    const Tensor dense = dense_piece(p, source, scratch);
    std::byte* to = memory + files_->offset[i];
    p.is_b ? files_->target.ops->pack_lora_b(to, dense)
           : files_->target.ops->pack_lora_a(to, dense);
  }
  const SiteIndex& index = files_->target.sites->index;
  adapter->pairs_.resize(static_cast<size_t>(index.size()));
  for (const MappedPair& m : map.pairs) {
    LoraPair& pair = adapter->pairs_[static_cast<size_t>(index(m.site))];
    pair.a = memory + files_->offset[static_cast<size_t>(m.a)];
    pair.b = memory + files_->offset[static_cast<size_t>(m.b)];
    pair.rank = m.rank;
    pair.scale = m.scale;
    adapter->sites_.push_back({m.site, m.module, m.rank, m.scale});
    adapter->max_rank_ = std::max(adapter->max_rank_, m.rank);
  }
  adapter->digest_ = digest();
  adapter->invocation_tokens_ = files_->config.invocation_tokens();
  adapter->base_model_ = files_->config.base_model();
  return adapter;
}

void AdapterFolder::check_base_copies() const {
  const TensorSet& file = *files_->weights;
  for (const LoraMap::BaseCopy& copy : files_->map.base_copies) {
    const TensorInfo& info = file.tensors()[static_cast<size_t>(copy.tensor)];
    const SameAsBase& same = files_->target.same_as_base;
    if (same && same(copy.module, file.tensor(info))) continue;
    fail(
        Code::unsupported,
        "{}: tensor {}: expected a copy of the base model's weight of {}; an adapter that replaces "
        "a base weight is not supported",
        file.path(), info.name, copy.module);
  }
}

// What is applied (site, rank, scale, and which part of which tensor), then the tensors themselves
// by name, so that neither their order in the file nor the training options in the config count.
Digest AdapterFolder::digest() const {
  const TensorSet& file = *files_->weights;
  const LoraMap& map = files_->map;
  Sha256 hash;
  hash.update("lorry adapter 1");
  std::vector<const TensorInfo*> used;
  const auto add_piece = [&](int32_t index) {
    const LoraPiece& p = map.pieces[static_cast<size_t>(index)];
    const TensorInfo& info = file.tensors()[static_cast<size_t>(p.tensor)];
    hash_value(hash, info.name.size());
    hash.update(info.name);
    for (const int64_t x : {p.rows, p.cols, p.offset, p.row_stride, p.col_stride}) {
      hash_value(hash, x);
    }
    used.push_back(&info);
  };
  for (const MappedPair& m : map.pairs) {
    hash_value(hash, files_->target.sites->index(m.site));
    hash_value(hash, m.rank);
    hash_value(hash, std::bit_cast<uint32_t>(m.scale));
    add_piece(m.a);
    add_piece(m.b);
  }
  for (const int32_t id : files_->config.invocation_tokens()) hash_value(hash, id);
  const auto by_name = [](const auto* x, const auto* y) { return x->name < y->name; };
  std::sort(used.begin(), used.end(), by_name);
  used.erase(std::unique(used.begin(), used.end()), used.end());
  for (const TensorInfo* info : used) {
    const Tensor t = file.tensor(*info);
    hash_value(hash, t.dtype);
    hash.update({t.data, static_cast<size_t>(info->end - info->begin)});
  }
  return hash.finish();
}

std::unique_ptr<Adapter> load_adapter(const std::string& folder, const AdapterTarget& target,
                                      const AdapterLimits& limits) {
  return AdapterFolder::open(folder, target, limits)->read();
}

}  // namespace lorry
