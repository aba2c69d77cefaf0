// adapt: tables of what each adapter does at each site, and the kernels.
#include "ops/cuda/backend.h"

namespace lorry::cuda {

namespace {

// Of linear: the most groups that a segment can name. Segments on the device are not looked at.
int32_t groups_of(bool on_device, std::span<const LoraSite> sites,
                  std::span<const LoraSegment> segments) {
  int32_t groups = sites.front().groups;
  if (on_device) return groups;
  for (const LoraSegment& s : segments) groups = std::max(groups, s.group + 1);
  return groups;
}

const std::byte* first_pointer(const SitePatch& p) {
  if (p.a != nullptr || p.change == nullptr) return p.a;
  if (p.change->weight != nullptr) return p.change->weight;
  if (p.change->gain != nullptr) return reinterpret_cast<const std::byte*>(p.change->gain);
  return p.change->token_rows;
}

}  // namespace

void Table::send(Call& call, CudaMemory& memory, std::span<const std::byte> bytes) {
  last_.assign(bytes.begin(), bytes.end());
  if (device_.size() < bytes.size()) device_ = Buffer(std::max<size_t>(1, bytes.size()), &memory);
  const Staging::Room room = call.room(bytes.size());
  if (!bytes.empty()) std::memcpy(room.host, bytes.data(), bytes.size());
  copy_in(memory.stream(), device_.data(), room.host, bytes.size());
}

// Sizes in bytes of what a patch points to.
struct CudaOps::PatchSizes {
  int64_t a, b, weight, gain, token_rows;
};

Patch CudaOps::patch_of(Call& call, const SitePatch& from, const PatchSizes& size) const {
  const SiteChange none;
  const SiteChange& change = from.change == nullptr ? none : *from.change;
  Patch p{};
  p.rank = from.rank;
  p.scale = from.scale;
  p.n_tokens = change.n_tokens;
  p.a = from.a;
  p.b = from.b;
  p.weight = reinterpret_cast<const unsigned char*>(change.weight);
  p.gain = change.gain;
  p.tokens = change.tokens;
  p.token_rows = reinterpret_cast<const unsigned char*>(change.token_rows);
  // An image is in one place.
  if (call.on_device(first_pointer(from))) return p;
  p.a = call.in(from.a, from.rank == 0 ? 0 : size.a);
  p.b = call.in(from.b, from.rank == 0 ? 0 : size.b);
  p.weight = call.in(p.weight, size.weight);
  p.gain = call.in(p.gain, size.gain);
  p.tokens = call.in(p.tokens, int64_t{p.n_tokens});
  p.token_rows = call.in(p.token_rows, size.token_rows);
  return p;
}

// Segments of dense linears lie in the processor's memory.
const Segment* CudaOps::segments_of(Call& call, std::span<const LoraSegment> segments) {
  if (call.on_device(segments.data())) return reinterpret_cast<const Segment*>(segments.data());
  segments_.clear();
  for (const LoraSegment& s : segments) segments_.push_back({s.begin, s.end, s.adapter, s.group});
  return segment_table_.put(call, memory_, segments_);
}

// The patches made from wanted_ by make(from, at); those of the last call if it wanted the same.
template <class F>
PatchTable& CudaOps::patches_of(Call& call, const LoraSite* key, F&& make) {
  constexpr size_t kMostTables = 8192;  // more than linears: forgotten ones are of other models
  if (patch_tables_.size() > kMostTables) patch_tables_.clear();
  PatchTable& t = patch_tables_[key];
  if (t.stays && t.made_from == wanted_) return t;
  t.made_from = wanted_;
  t.patches.clear();
  t.stays = true;
  for (size_t i = 0; i < wanted_.size(); ++i) {
    const SitePatch& from = wanted_[i];
    t.patches.push_back(from.neutral() ? Patch{} : make(from, i));
    const bool copied = !from.neutral() && !call.on_device(first_pointer(from));
    t.stays = t.stays && from.change == nullptr && !copied;
  }
  return t;
}

// One for each (adapter, group, site).
void CudaOps::want_patches(std::span<const LoraSite> sites, std::span<const LoraSegment> segments,
                           const LoraPlan& plan) {
  wanted_groups_ = groups_of(memory_.contains(segments.data()), sites, segments);
  wanted_.clear();
  for (const AdapterView& view : plan.adapters) {
    for (int32_t g = 0; g < wanted_groups_; ++g) {
      for (const LoraSite& site : sites) {
        wanted_.push_back(view.patches[static_cast<size_t>(site.index(g))]);
      }
    }
  }
}

// The patches that are wanted, and what the kernels' sizes depend on.
const std::vector<Patch>& CudaOps::fill_tables(AdaptArgs& a, Call& call,
                                               std::span<const LoraSite> sites,
                                               std::span<const LoraSegment> segments) {
  LORRY_CHECK(sites.size() <= kMaxSites, "{} sites of one linear", sites.size());
  a.groups = wanted_groups_;
  a.sites = static_cast<int32_t>(sites.size());
  a.segments = segments_of(call, segments);
  a.n_segments = static_cast<int32_t>(segments.size());
  a.early = !call.on_device(segments.data());
  a.clusters = wide_;
  for (size_t s = 0; s < sites.size(); ++s) {
    a.site[s] = {sites[s].column, sites[s].panel_stride, static_cast<int32_t>(sites[s].in),
                 static_cast<int32_t>(sites[s].out)};
    a.max_out = std::max(a.max_out, a.site[s].out);
  }
  const auto matrix = [&](int64_t out, int64_t in) { return plain_bytes(out, in); };
  PatchTable& made = patches_of(call, sites.data(), [&](const SitePatch& from, size_t i) {
    const LoraSite& site = sites[i % sites.size()];
    const int32_t n_tokens = from.change == nullptr ? 0 : from.change->n_tokens;
    return patch_of(
        call, from,
        {static_cast<int64_t>(lora_a_bytes(from.rank, site.in)),
         static_cast<int64_t>(lora_b_bytes(site.out, from.rank)), matrix(site.out, site.in),
         div_up(site.out, kPanel) * kPanel, matrix(n_tokens, site.in)});
  });
  for (const Patch& p : made.patches) {
    a.max_rank = std::max(a.max_rank, p.rank);
    a.max_tokens = std::max(a.max_tokens, p.n_tokens);
  }
  a.patches = made.table.put(call, memory_, made.patches);
  return made.patches;
}

// Where t goes.
void CudaOps::fill_sums(AdaptArgs& a, Call& call, const Tensor& scratch) {
  a.t_pitch = div_up(a.max_rank, 16) * 16;
  const int64_t needed = int64_t{a.rows} * a.sites * a.t_pitch;
  LORRY_CHECK(scratch.shape.size() >= needed, "scratch of {} for {} rows, {} sites, rank {}",
              scratch.shape.size(), a.rows, a.sites, a.max_rank);
  a.t = call.out<float>(scratch);
}

void CudaOps::adapt(Tensor y, Tensor x, std::span<const LoraSite> sites,
                    std::span<const LoraSegment> segments, const LoraPlan& plan, Tensor scratch) {
  if (segments.empty() || plan.adapters.empty()) return;
  Call call(memory_, staging_);
  AdaptArgs a{};
  a.rows = static_cast<int32_t>(x.rows());
  want_patches(sites, segments, plan);
  const std::vector<Patch>& patches = fill_tables(a, call, sites, segments);
  a.x = call.in(x);
  a.x_pitch = x.pitch;
  a.y = call.out<float>(y);
  a.y_pitch = y.pitch;
  fill_sums(a, call, scratch);
  const auto any = [&](auto&& has) { return std::any_of(patches.begin(), patches.end(), has); };
  if (any([](const Patch& p) { return p.weight != nullptr; })) {
    replace_outputs(call.stream(), a, false, type());
  }
  if (a.max_rank > 0) cuda::add_pairs(call.stream(), a, type());
  if (any([](const Patch& p) { return p.gain != nullptr; })) scale_outputs(call.stream(), a);
  if (a.max_tokens > 0) replace_outputs(call.stream(), a, true, type());
}

void CudaOps::adapt_embedding(Tensor y, Tensor ids, const LoraSite& site,
                              std::span<const LoraSegment> segments, const LoraPlan& plan,
                              Tensor scratch) {
  if (segments.empty()) return;
  (void)scratch;  // a row's sums are in shared memory
  Call call(memory_, staging_);
  AdaptEmbeddingArgs e{};
  AdaptArgs& a = e.adapt;
  a.rows = static_cast<int32_t>(y.rows());
  a.groups = 1;
  a.sites = 1;
  a.segments = segments_of(call, segments);
  a.n_segments = static_cast<int32_t>(segments.size());
  a.site[0].in = static_cast<int32_t>(site.in);
  a.site[0].out = static_cast<int32_t>(site.out);
  wanted_.clear();
  for (const AdapterView& view : plan.adapters) {
    wanted_.push_back(view.patches[static_cast<size_t>(site.first)]);
  }
  const auto neutral = [](const SitePatch& p) { return p.neutral(); };
  if (std::all_of(wanted_.begin(), wanted_.end(), neutral)) return;
  PatchTable& made = patches_of(call, &site, [&](const SitePatch& from, size_t) {
    const int64_t row = site.out * size_of(act_);
    const int32_t n_tokens = from.change == nullptr ? 0 : from.change->n_tokens;
    return patch_of(call, from,
                    {site.in * from.rank * size_of(act_),
                     static_cast<int64_t>(lora_b_bytes(site.out, from.rank)), site.in * row,
                     div_up(site.out, kPanel) * kPanel, n_tokens * row});
  });
  for (const Patch& p : made.patches) a.max_rank = std::max(a.max_rank, p.rank);
  a.patches = made.table.put(call, memory_, made.patches);
  a.y = call.out<float>(y);
  a.y_pitch = y.pitch;
  e.ids = call.in<int32_t>(ids);
  cuda::adapt_embedding(call.stream(), e, type());
}

}  // namespace lorry::cuda
