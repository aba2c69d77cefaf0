#include "adapters/describe.h"

#include <map>
#include <set>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace lorry {

namespace {

struct Line {
  std::set<int32_t> layers;
  int64_t sites = 0;
};

// "rank 8, scale 2, DoRA".
std::string what_of(const AppliedSite& s) {
  std::vector<std::string> parts;
  if (s.rank > 0) parts.push_back(fmt::format("rank {}, scale {}", s.rank, s.scale));
  if (s.dora) parts.emplace_back("DoRA");
  if (s.replaced) parts.emplace_back("replaced");
  if (s.token_rows > 0) parts.push_back(fmt::format("{} token rows", s.token_rows));
  return fmt::format("{}", fmt::join(parts, ", "));
}

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
    case SiteKind::attn_norm:
      return "attn_norm";
    case SiteKind::ffn_norm:
      return "ffn_norm";
    case SiteKind::embed:
      return "embed";
    case SiteKind::final_norm:
      return "final_norm";
    case SiteKind::lm_head:
      return "lm_head";
  }
  return "?";
}

std::string describe_text(const Adapter& adapter) {
  std::map<std::pair<SiteKind, std::string>, Line> lines;
  for (const AppliedSite& s : adapter.sites()) {
    Line& line = lines[{s.site.kind, what_of(s)}];
    if (in_layer(s.site.kind)) line.layers.insert(s.site.layer);
    ++line.sites;
  }
  std::string text = fmt::format("digest  sha256:{}\n", to_hex(adapter.digest()));
  if (!adapter.base_model().empty()) text += fmt::format("made for  {}\n", adapter.base_model());
  text += fmt::format("{} sites, {} bytes, rank at most {}\n", adapter.sites().size(),
                      adapter.bytes(), adapter.max_rank());
  if (const MedusaShape& m = adapter.medusa(); m.heads > 0) {
    text += fmt::format(
        "{} Medusa heads of {} layers, {}\n", m.heads, m.blocks,
        m.own_output ? "output matrices of their own" : "through the model's output layer");
  }
  if (!adapter.invocation_tokens().empty()) {
    text +=
        fmt::format("activated by the tokens {}\n", fmt::join(adapter.invocation_tokens(), " "));
  }
  for (const auto& [key, line] : lines) {
    text += fmt::format("  {:11}{}, {} site{}", to_string(key.first), key.second, line.sites,
                        line.sites == 1 ? "" : "s");
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
    if (in_layer(s.site.kind)) o["layer"] = s.site.layer;
    if (s.site.expert >= 0) o["expert"] = s.site.expert;
    o["module"] = s.module;
    o["rank"] = s.rank;
    o["scale"] = s.scale;
    o["dora"] = s.dora;
    o["replaced"] = s.replaced;
    o["token_rows"] = s.token_rows;
    sites.push_back(std::move(o));
  }
  json::object o;
  o["digest"] = to_hex(adapter.digest());
  o["bytes"] = adapter.bytes();
  o["max_rank"] = adapter.max_rank();
  o["base_model_name_or_path"] = adapter.base_model();
  o["invocation_tokens"] =
      json::array(adapter.invocation_tokens().begin(), adapter.invocation_tokens().end());
  o["medusa_heads"] = adapter.medusa().heads;
  o["sites"] = std::move(sites);
  return o;
}

}  // namespace lorry
