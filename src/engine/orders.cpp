#include "engine/orders.h"

#include <algorithm>
#include <bit>

#include "base/error.h"
#include "ops/ops.h"

namespace lorry {

namespace {

void write(WireWriter& to, const AdapterFiles& f) {
  to.number(static_cast<int64_t>(f.parts.size()));
  for (const AdapterFiles::Part& p : f.parts) {
    to.text(p.name);
    to.text(p.path);
    to.number(std::bit_cast<int32_t>(p.weight));
  }
  to.number(f.is_merge ? 1 : 0);
  if (!f.is_merge) return;
  to.number(static_cast<int64_t>(f.merge.strategy));
  to.number(std::bit_cast<int64_t>(f.merge.density));
  to.number(static_cast<int64_t>(f.merge.majority_sign));
  to.number(std::bit_cast<int64_t>(f.merge.seed));
}

void read(WireReader& from, AdapterFiles& f) {
  f.parts.resize(static_cast<size_t>(from.number()));
  for (AdapterFiles::Part& p : f.parts) {
    p.name = from.text();
    p.path = from.text();
    p.weight = std::bit_cast<float>(static_cast<int32_t>(from.number()));
  }
  f.is_merge = from.number() != 0;
  if (!f.is_merge) return;
  f.merge.strategy = static_cast<MergeSpec::Strategy>(from.number());
  f.merge.density = std::bit_cast<double>(from.number());
  f.merge.majority_sign = static_cast<MergeSpec::MajoritySign>(from.number());
  f.merge.seed = std::bit_cast<uint64_t>(from.number());
}

}  // namespace

void write(WireWriter& to, const AdapterOrder& o) {
  to.number(o.is_read ? 1 : 0);
  for (const int64_t x : {int64_t{o.content}, o.from, o.to, o.bytes}) to.number(x);
  if (o.is_read) write(to, o.files);
}

void read(WireReader& from, AdapterOrder& o) {
  o.is_read = from.number() != 0;
  o.content = static_cast<int32_t>(from.number());
  for (int64_t* x : {&o.from, &o.to, &o.bytes}) *x = from.number();
  if (o.is_read) read(from, o.files);
}

void write(WireWriter& to, const AdapterReport& r) {
  to.number(r.content);
  to.text(r.digest);
  to.number(static_cast<int64_t>(r.code));
  to.text(r.message);
}

void read(WireReader& from, AdapterReport& r) {
  r.content = static_cast<int32_t>(from.number());
  r.digest = from.text();
  r.code = static_cast<Code>(from.number());
  r.message = from.text();
}

void write(WireWriter& to, const ForwardInput& in, std::span<const int32_t> contents) {
  for (const auto list : {in.input_ids, in.position_ids, in.rope_lens, in.cu_seqlens, in.kv_lens,
                          in.slots, in.adapters, in.logit_rows, contents}) {
    to.list(list);
  }
  to.number(static_cast<int64_t>(in.want));
  to.number(in.max_blocks);
  const auto width = static_cast<size_t>(in.max_blocks);
  for (size_t s = 0; s < in.kv_lens.size(); ++s) {
    const auto used = static_cast<size_t>((in.kv_lens[s] + kBlockTokens - 1) / kBlockTokens);
    to.list(in.block_tables.subspan(s * width, std::min(used, width)));
  }
}

void read(WireReader& from, OwnedInput& o) {
  for (auto* list : {&o.ids, &o.positions, &o.rope_lens, &o.cu_seqlens, &o.kv_lens, &o.slots,
                     &o.adapters, &o.logit_rows, &o.contents}) {
    from.list(*list);
  }
  ForwardInput& in = o.input;
  in.want = static_cast<Want>(from.number());
  LORRY_CHECK(in.want <= Want::best, "a pass that wants {}", static_cast<int>(in.want));
  in.max_blocks = static_cast<int32_t>(from.number());
  const auto width = static_cast<size_t>(in.max_blocks);
  o.tables.assign(o.kv_lens.size() * width, -1);
  std::vector<int32_t> row;
  for (size_t s = 0; s < o.kv_lens.size(); ++s) {
    from.list(row);
    LORRY_CHECK(row.size() <= width, "a table of {} in {}", row.size(), width);
    std::copy(row.begin(), row.end(), o.tables.begin() + static_cast<std::ptrdiff_t>(s * width));
  }
  in.input_ids = o.ids;
  in.position_ids = o.positions;
  in.rope_lens = o.rope_lens;
  in.cu_seqlens = o.cu_seqlens;
  in.kv_lens = o.kv_lens;
  in.block_tables = o.tables;
  in.slots = o.slots;
  in.adapters = o.adapters;
  in.logit_rows = o.logit_rows;
}

}  // namespace lorry
