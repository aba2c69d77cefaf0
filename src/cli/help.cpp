#include "cli/help.h"

#include <algorithm>
#include <array>
#include <sstream>
#include <string_view>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "cli/settings.h"

namespace lorry {

namespace {

constexpr size_t kColumn = 32;  // where descriptions begin
constexpr size_t kWidth = 100;
constexpr size_t kFew = 24;  // flags that are shown whole

// Of commands with many flags, those that --help shows. The rest is for --help-all.
constexpr auto kCommon = std::to_array<std::string_view>({
    "--model-id",
    "--dtype",
    "--quantize",
    "--threads",
    "--kv-tokens",
    "--kv-cache-dtype",
    "--adapter-memory",
    "--max-lora-rank",
    "--num-shard",
    "--host",
    "--port",
    "--api-key-file",
    "--ssl-certfile",
    "--ssl-keyfile",
    "--lora-modules",
    "--adapter-root",
    "--adapter-id",
    "--default-adapter-source",
    "--max-total-tokens",
    "--max-num-seqs",
    "--max-concurrent-requests",
    "--config",
    "--log-level",
    "--json-output",
    "--report",
    "--prompt",
    "--adapter",
    "--chat",
    "--system",
    "--max-new-tokens",
    "--temperature",
    "--top-p",
    "--seed",
    "--prompts",
    "--out",
});

bool is_common(const CLI::Option& o) {
  if (o.get_positional() || o.get_required()) return true;
  const auto& names = o.get_lnames();
  return std::any_of(names.begin(), names.end(), [](const std::string& name) {
    return std::find(kCommon.begin(), kCommon.end(), "--" + name) != kCommon.end();
  });
}

// "model, --model-id FOLDER".
std::string left_side(const CLI::Option& o) {
  std::vector<std::string> names;
  if (o.get_positional()) names.push_back(o.get_name(true, false));
  for (const std::string& name : o.get_snames()) names.push_back("-" + name);
  for (const std::string& name : o.get_lnames()) names.push_back("--" + name);
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  const std::string value = value_of(o);
  if (o.nonpositional() && !value.empty()) text += " " + value;
  if (o.get_expected_max() > 1) text += " ...";
  return text;
}

std::string right_side(const CLI::App& app, const CLI::Option& o, bool all) {
  std::string text = o.get_description();
  if (o.get_required() && o.nonpositional()) text += " (required)";
  if (!o.get_default_str().empty()) text += " (default: " + o.get_default_str() + ")";
  const std::string variable = all && has_settings(app) ? variable_of(o) : "";
  return variable.empty() ? text : text + " [" + variable + "]";
}

void add_wrapped(std::string& out, const std::string& left, const std::string& text) {
  std::string line = "  " + left;
  if (line.size() + 2 > kColumn) {
    out += line + "\n";
    line.clear();
  }
  line.resize(kColumn, ' ');
  std::istringstream words(text);
  bool first = true;
  for (std::string word; words >> word;) {
    if (!first && line.size() + 1 + word.size() > kWidth) {
      out += line + "\n";
      line.assign(kColumn, ' ');
      first = true;
    }
    line += (first ? "" : " ") + word;
    first = false;
  }
  out += line + "\n";
}

std::string usage(const CLI::App& app, const std::string& name) {
  std::string text = "Usage: " + name;
  for (const CLI::Option* o : shown_options(app)) {
    if (!o->get_positional()) continue;
    const std::string place = value_of(*o);
    text += o->get_required() ? " " + place : " [" + place + "]";
  }
  text += app.get_subcommands({}).empty() ? " [FLAGS]" : " COMMAND [FLAGS]";
  return text + "\n";
}

void add_group(std::string& out, const CLI::App& app, const std::string& group, bool all) {
  std::string lines;
  for (const CLI::Option* o : shown_options(app)) {
    if (o->get_group() != group || !(all || is_common(*o))) continue;
    add_wrapped(lines, left_side(*o), right_side(app, *o, all));
  }
  if (!lines.empty()) out += fmt::format("\n{}:\n{}", group, lines);
}

// The number of letters to change, add, leave out, or swap with the next that makes one word of the
// other.
size_t distance(std::string_view a, std::string_view b) {
  std::vector<std::vector<size_t>> d(a.size() + 1, std::vector<size_t>(b.size() + 1));
  for (size_t i = 0; i <= a.size(); ++i) d[i][0] = i;
  for (size_t j = 0; j <= b.size(); ++j) d[0][j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    for (size_t j = 1; j <= b.size(); ++j) {
      const bool same = a[i - 1] == b[j - 1];
      d[i][j] = std::min({d[i - 1][j] + 1, d[i][j - 1] + 1, d[i - 1][j - 1] + (same ? 0 : 1)});
      const bool swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
      if (swapped) d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
    }
  }
  return d[a.size()][b.size()];
}

}  // namespace

std::vector<const CLI::Option*> shown_options(const CLI::App& app) {
  return app.get_options([&](const CLI::Option* o) {
    return !o->get_group().empty() && o != app.get_help_ptr() && o != app.get_help_all_ptr() &&
           o->get_name() != "--version";
  });
}

std::string value_of(const CLI::Option& o) {
  if (o.get_expected_max() == 0) return "";
  if (!o.get_option_text().empty()) return o.get_option_text();
  return o.get_type_name();
}

std::string HelpFormatter::make_help(const CLI::App* app, std::string name,
                                     CLI::AppFormatMode mode) const {
  const auto options = shown_options(*app);
  const bool all = mode == CLI::AppFormatMode::All || options.size() <= kFew;
  std::string out = app->get_description() + "\n" + usage(*app, name);
  for (const std::string& group : app->get_groups()) add_group(out, *app, group, all);
  std::string commands;
  for (const CLI::App* command : app->get_subcommands({})) {
    add_wrapped(commands, command->get_name(), command->get_description());
  }
  if (!commands.empty()) out += "\nCommands:\n" + commands;
  if (!all) {
    out += fmt::format("\nMore: {} --help-all lists all {} flags{}.\n", name, options.size(),
                       has_settings(*app) ? ", with their environment variables" : "");
  }
  if (!app->get_footer().empty()) out += "\n" + app->get_footer() + "\n";
  return out;
}

std::string nearest(const std::string& word, const std::vector<std::string>& candidates) {
  std::string best;
  if (word.size() > 64) return "";
  size_t least = std::max<size_t>(1, word.size() / 4) + 1;
  for (const std::string& candidate : candidates) {
    size_t d = distance(word, candidate);
    // A beginning that is long enough is as good as a typing mistake.
    if (word.size() >= 5 && candidate.starts_with(word)) d = std::min<size_t>(d, 2);
    if (d >= least) continue;
    least = d;
    best = candidate;
  }
  return best;
}

std::string did_you_mean(const std::string& word, const std::vector<std::string>& candidates) {
  const std::string best = nearest(word, candidates);
  return best.empty() ? "" : fmt::format("; did you mean {}?", best);
}

std::span<const std::string_view> common_flags() { return kCommon; }

std::vector<std::string> flag_names(const CLI::App& app) {
  std::vector<std::string> names = {"--help", "--help-all"};
  for (const CLI::Option* o : shown_options(app)) {
    for (const std::string& name : o->get_lnames()) names.push_back("--" + name);
  }
  return names;
}

}  // namespace lorry
