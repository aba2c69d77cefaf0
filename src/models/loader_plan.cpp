// What a load will take and read, and whether it has read what there is.
#include <algorithm>
#include <array>
#include <set>

#include "base/error.h"
#include "models/loader.h"
#include "models/stored_slices.h"

namespace lorry {

namespace {

// What other ranks read: modules, and tensors by their whole name.
std::set<std::string, std::less<>> read_elsewhere(const Architecture& architecture,
                                                  const ModelShare& share, TensorSource& source) {
  std::set<std::string, std::less<>> names;
  if (share.is_whole()) return names;
  const auto add = [&](const Slice& s) {
    names.insert(s.name);
    if (source.quantised(s.name)) names.insert(s.name.substr(0, s.name.rfind('.')));
  };
  for (int32_t i = 0; i < share.whole.layers; ++i) {
    const LayerSlices l = layer_slices(architecture, share.whole, source, i);
    for (const Slice& s : l.qkv) add(s);
    add(l.o);
    for (const ExpertSlices& e : l.experts) {
      for (const Slice* s : {&e.gate, &e.up, &e.down}) add(*s);
    }
  }
  return names;
}

}  // namespace

size_t check_unused(TensorSource& source, const Architecture& architecture, const ModelShare& share,
                    const std::string& model) {
  std::vector<std::string> unused = source.unused();
  const auto elsewhere = read_elsewhere(architecture, share, source);
  std::erase_if(unused, [&](const std::string& name) {
    return elsewhere.contains(name) || elsewhere.contains(name.substr(0, name.rfind('.')));
  });
  const auto harmless = [](const std::string& name) {
    return name.ends_with("rotary_emb.inv_freq") || name == "lm_head.weight";  // tied: a copy
  };
  for (const std::string& name : unused) {
    if (harmless(name)) continue;
    fail(Code::bad_file, "{}: tensor {} belongs to nothing in a {} model ({} tensors are unused)",
         model, name, share.whole.model_type, unused.size());
  }
  return unused.size();
}

WeightFormats stored_formats(const Architecture& architecture, const Spec& spec,
                             TensorSource& source) {
  if (const PackedFile* packed = source.packed()) {
    return {weight_format(packed->info().linears), weight_format(packed->info().head)};
  }
  const LayerSlices l = layer_slices(architecture, spec, source, 0);
  const Slice head = architecture.model(spec).head;
  return {format_of(source, downs(l), 1, spec.formats.linears),
          format_of(source, std::array{head}, 1, spec.formats.head)};
}

size_t weight_bytes(const Architecture& architecture, const ModelShare& share, TensorSource& source,
                    const Ops& ops) {
  const Spec& spec = share.own;
  const int64_t experts = share.placement.experts.count;
  const auto packed = [&](int64_t groups, int64_t out, int64_t in, WeightFormat format) {
    const Weight w = ops.weight_layout(groups, out, in, format);
    const bool ordered = !format.plain() && source.scheme().act_order;
    return static_cast<size_t>(groups * (w.group_bytes + (ordered ? 4 * in : 0)));
  };
  const WeightFormat wanted = spec.formats.linears;
  const ModelSlices m = own_slices(model_slices(architecture, share.whole, source), share);
  size_t bytes =
      packed(1, spec.vocab, spec.dim, format_of(source, std::array{m.head}, 1, spec.formats.head)) +
      Arena::tensor_bytes(ops.act(), {spec.vocab, spec.dim}) +
      Arena::tensor_bytes(Dtype::f32, {spec.dim});
  for (int32_t i = 0; i < spec.layers; ++i) {
    const LayerSlices l = own_slices(layer_slices(architecture, share.whole, source, i), share);
    if (spec.attention.heads > 0) {
      bytes += packed(1, spec.qkv_dim(), spec.dim, format_of(source, l.qkv, l.qkv.size(), wanted)) +
               packed(1, spec.dim, spec.q_dim(), format_of(source, std::array{l.o}, 1, wanted));
    }
    bytes += packed(1, spec.experts, spec.dim, {}) +
             packed(experts, gate_up_dim(spec.ffn), spec.dim,
                    format_of(source, gates_and_ups(l), 2, wanted)) +
             packed(experts, spec.dim, spec.ffn, format_of(source, downs(l), 1, wanted)) +
             2 * Arena::tensor_bytes(Dtype::f32, {spec.dim});
  }
  return bytes;
}

}  // namespace lorry
