#include "adapters/describe.h"

#include <map>
#include <set>
#include <tuple>

#include <fmt/format.h>

namespace lorry {

namespace {

struct Line {
  std::set<int32_t> layers;
  int64_t linears = 0;
};

// "0-3,7" for {0, 1, 2, 3, 7}.
std::string ranges(const std::set<int32_t>& numbers) {
  std::string text;
  for (auto i = numbers.begin(); i != numbers.end();) {
    const int32_t first = *i;
    int32_t last = first;
    while (++i != numbers.end() && *i == last + 1) last = *i;
    if (!text.empty()) text += ",";
    text += first == last ? fmt::format("{}", first) : fmt::format("{}-{}", first, last);
  }
  return text;
}

}  // namespace

const char* to_string(SiteKind kind) {
  switch (kind) {
    case SiteKind::q:
      return "q";
    case SiteKind::k:
      return "k";
    case SiteKind::v:
      return "v";
    case SiteKind::qkv:
      return "qkv";
    case SiteKind::o:
      return "o";
    case SiteKind::router:
      return "router";
    case SiteKind::gate:
      return "gate";
    case SiteKind::up:
      return "up";
    case SiteKind::down:
      return "down";
    case SiteKind::lm_head:
      return "lm_head";
  }
  return "?";
}

std::string describe_text(const Adapter& adapter) {
  std::map<std::tuple<SiteKind, int32_t, float>, Line> lines;
  for (const AppliedSite& s : adapter.sites()) {
    Line& line = lines[{s.site.kind, s.rank, s.scale}];
    if (s.site.kind != SiteKind::lm_head) line.layers.insert(s.site.layer);
    ++line.linears;
  }
  std::string text = fmt::format("digest  sha256:{}\n", to_hex(adapter.digest()));
  if (!adapter.base_model().empty()) text += fmt::format("made for  {}\n", adapter.base_model());
  text += fmt::format("{} linears, {} bytes, rank at most {}\n", adapter.sites().size(),
                      adapter.bytes(), adapter.max_rank());
  for (const auto& [key, line] : lines) {
    const auto& [kind, rank, scale] = key;
    text += fmt::format("  {:8}rank {:<4} scale {:<10} {} linears", to_string(kind), rank, scale,
                        line.linears);
    if (!line.layers.empty()) text += fmt::format(", layers {}", ranges(line.layers));
    text += "\n";
  }
  return text;
}

json::object describe_json(const Adapter& adapter) {
  json::array sites;
  for (const AppliedSite& s : adapter.sites()) {
    json::object o;
    o["kind"] = to_string(s.site.kind);
    if (s.site.kind != SiteKind::lm_head) o["layer"] = s.site.layer;
    if (s.site.expert >= 0) o["expert"] = s.site.expert;
    o["module"] = s.module;
    o["rank"] = s.rank;
    o["scale"] = s.scale;
    sites.push_back(std::move(o));
  }
  json::object o;
  o["digest"] = to_hex(adapter.digest());
  o["bytes"] = adapter.bytes();
  o["max_rank"] = adapter.max_rank();
  o["base_model_name_or_path"] = adapter.base_model();
  o["sites"] = std::move(sites);
  return o;
}

}  // namespace lorry
