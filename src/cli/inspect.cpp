// `lorry inspect`: what would load, without loading it.
#include <memory>
#include <set>
#include <string>

#include <CLI/CLI.hpp>
#include <boost/json/serialize.hpp>
#include <fmt/format.h>

#include "adapters/describe.h"
#include "adapters/medusa.h"
#include "base/error.h"
#include "base/files.h"
#include "base/system.h"
#include "cli/commands.h"
#include "cli/model_flags.h"
#include "cli/preview.h"
#include "cli/report.h"
#include "cli/values.h"

namespace lorry {

namespace {

struct Flags {
  std::string what;
  ModelFlags model;
  bool as_json = false;
  bool check = false;
};

bool is_adapter(const std::string& folder) {
  return file_exists(join_path(folder, "adapter_config.json")) || has_medusa(folder);
}

std::string site_kinds(const Preview& p) {
  std::set<SiteKind> kinds;
  for (const SiteInfo& s : p.sites.sites) kinds.insert(s.site.kind);
  std::string text;
  for (const SiteKind kind : kinds)
    text += (text.empty() ? "" : " ") + std::string(to_string(kind));
  return text;
}

json::object spec_json(const Spec& s) {
  return {{"model_type", s.model_type},
          {"vocab", s.vocab},
          {"dim", s.dim},
          {"layers", s.layers},
          {"heads", s.attention.heads},
          {"kv_heads", s.attention.kv_heads},
          {"head_dim", s.attention.head_dim},
          {"experts", s.experts},
          {"experts_per_token", s.routing.top_k},
          {"ffn", s.ffn},
          {"max_positions", s.max_positions},
          {"tied_head", s.tied_head}};
}

json::object model_json(const Preview& p, const ModelPlace& place) {
  json::object o;
  o["model"] = place.name;
  o["folder"] = place.folder;
  o["digest"] = p.digest;
  o["spec"] = spec_json(p.spec);
  if (p.parts.source->packed() != nullptr) {
    o["packed"] = json::object{{"linears", to_string(p.spec.formats.linears)},
                               {"head", to_string(p.spec.formats.head)}};
  }
  o["tensors"] = p.tensors;
  o["file_bytes"] = p.file_bytes;
  o["sites"] = p.sites.sites.size();
  o["site_kinds"] = site_kinds(p);
  o["stacked_sites"] = p.sites.fused.size();
  if (p.memory) o["memory"] = memory_json(*p.memory);
  if (!p.does_not_fit.empty()) o["does_not_fit"] = p.does_not_fit;
  json::array adapters;
  for (const auto& [name, folder] : place.adapters) adapters.emplace_back(name);
  o["adapters"] = std::move(adapters);
  return o;
}

std::string model_text(const Preview& p, const ModelPlace& place) {
  const Spec& s = p.spec;
  std::string text = fmt::format("model     {} ({})\n", place.name, s.model_type);
  if (place.folder != place.name) text += fmt::format("folder    {}\n", place.folder);
  text +=
      fmt::format("shape     {} layers, dim {}, {} heads ({} for keys and values) of {}\n",
                  s.layers, s.dim, s.attention.heads, s.attention.kv_heads, s.attention.head_dim);
  text += fmt::format("          {} experts (top {}) of {}, vocabulary {}, {} positions\n",
                      s.experts, s.routing.top_k, s.ffn, s.vocab, s.max_positions);
  if (p.tensors > 0) {
    text += fmt::format("files     {} tensors, {}\n", p.tensors,
                        format_bytes(static_cast<size_t>(p.file_bytes)));
  }
  if (p.parts.source->packed() != nullptr) {
    text += fmt::format("packed    {}, head {}\n", to_string(p.spec.formats.linears),
                        to_string(p.spec.formats.head));
  }
  if (!p.digest.empty()) text += fmt::format("digest    sha256:{}\n", p.digest);
  text += fmt::format("sites     {} places for adapters ({}) and {} tensors with all experts\n",
                      p.sites.sites.size(), site_kinds(p), p.sites.fused.size());
  text += p.memory ? p.memory->to_text() + "\n" : "does not fit: " + p.does_not_fit + "\n";
  for (const auto& [name, folder] : place.adapters) {
    text += fmt::format("adapter   {}  (lorry inspect {} --model {})\n", name, name, place.name);
  }
  return text;
}

int inspect_model(const Flags& flags) {
  ModelFlags model = flags.model;
  model.model = flags.what;
  const ModelPlace place = find_model(flags.what);
  const Preview p = preview_model(engine_options(model, place));
  if (flags.check) {
    const PackedFile* packed = p.parts.source->packed();
    if (packed == nullptr) {
      fail(Code::invalid_argument,
           "--check: {} has no checksums; only what lorry quantize made has", quote(flags.what));
    }
    packed->check_content();
  }
  fmt::print("{}",
             flags.as_json ? json::serialize(model_json(p, place)) + "\n" : model_text(p, place));
  return 0;
}

int inspect_adapter(const Flags& flags) {
  const ModelPlace place = find_model(flags.model.model);
  std::string folder = flags.what;
  for (const auto& [name, path] : place.adapters) {
    if (name == flags.what) folder = path;
  }
  const EngineOptions options = engine_options(flags.model, place);
  Preview model = preview_model(options);
  const auto adapter = preview_adapter(model, folder, options.max_lora_rank);
  if (flags.as_json) {
    json::object o = describe_json(*adapter);
    o["adapter"] = folder;
    o["model"] = place.name;
    fmt::print("{}\n", json::serialize(o));
  } else {
    fmt::print("adapter {} for {}\n{}", folder, place.name, describe_text(*adapter));
  }
  return 0;
}

int run(const Flags& flags) {
  if (!flags.model.model.empty()) return inspect_adapter(flags);
  if (!is_adapter(flags.what)) return inspect_model(flags);
  fail(Code::invalid_argument,
       "{} is an adapter: what it changes depends on the model; add --model MODEL",
       quote(flags.what));
}

}  // namespace

Command add_inspect(CLI::App& lorry) {
  const auto flags = std::make_shared<Flags>();
  flags->model.model.clear();
  CLI::App& app = *lorry.add_subcommand(
      "inspect", "Show what of a model or an adapter would load, its sizes and its sites");
  const char* group = "Model";
  app.add_option("what", flags->what,
                 "Folder of a model or an adapter, 'demo', or the name of a demo's adapter")
      ->required()
      ->group(group)
      ->type_name("MODEL|ADAPTER");
  app.add_option("--model", flags->model.model,
                 "The model that the adapter is for (default: none; an adapter needs it)")
      ->group(group)
      ->type_name(kModel);
  app.add_option("--dtype", flags->model.dtype, "Weights and activations (default: bfloat16)")
      ->group(group)
      ->type_name(kDtypes);
  accept_units(app.add_option("--max-lora-rank", flags->model.max_lora_rank,
                              "Largest rank of an adapter, 1 to 512 (default: 64)")
                   ->group(group),
               1, 512);
  app.add_flag("--check", flags->check,
               "Read all weights that lorry quantize packed and compare their checksums")
      ->group("Output");
  app.add_flag("--json", flags->as_json, "As one JSON object")->group("Output");
  app.footer(
      "Examples\n"
      "  lorry inspect demo\n"
      "  lorry inspect json --model demo\n"
      "  lorry inspect /adapters/sql --model /models/mixtral --json");
  return {&app, [flags] { return run(*flags); }};
}

}  // namespace lorry
