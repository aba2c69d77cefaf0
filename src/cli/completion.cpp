#include "cli/completion.h"

#include <algorithm>
#include <vector>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "base/error.h"
#include "cli/help.h"

namespace lorry {

namespace {

// What can be offered in the place of a value.
enum class Offer { nothing, list, folders, files, named_folder };

struct Flag {
  std::vector<std::string> names;  // with their dashes; of a positional none
  std::string says;
  Offer offer = Offer::nothing;
  bool takes_value = false;
  std::vector<std::string> list;
};

struct CommandFlags {
  std::string name, says;
  std::vector<Flag> flags;
  std::vector<Flag> places;  // positionals
};

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts;
  for (size_t at = 0; at <= text.size();) {
    const size_t end = std::min(text.find('|', at), text.size());
    parts.push_back(text.substr(at, end - at));
    at = end + 1;
  }
  return parts;
}

// Capitals stand for something, small letters for themselves.
Offer offer_of(const std::string& value) {
  const auto is_capital = [](char c) { return c >= 'A' && c <= 'Z'; };
  if (value.ends_with("=FOLDER")) return Offer::named_folder;
  if (value == "FILE") return Offer::files;
  if (value.starts_with("MODEL") || value == "FOLDER") return Offer::folders;
  if (value.find('|') == std::string::npos) return Offer::nothing;
  return std::any_of(value.begin(), value.end(), is_capital) ? Offer::nothing : Offer::list;
}

Flag flag_of(const CLI::Option& o) {
  Flag f;
  for (const std::string& name : o.get_snames()) f.names.push_back("-" + name);
  for (const std::string& name : o.get_lnames()) f.names.push_back("--" + name);
  f.says = o.get_description();
  const std::string value = value_of(o);
  f.takes_value = o.get_expected_max() > 0;
  f.offer = offer_of(value);
  if (f.offer == Offer::list) f.list = split(value);
  if (value.starts_with("MODEL")) f.list = {"demo", "demo:dbrx"};
  return f;
}

std::vector<CommandFlags> commands_of(const CLI::App& lorry) {
  std::vector<CommandFlags> all;
  for (const CLI::App* app : lorry.get_subcommands({})) {
    CommandFlags c{app->get_name(), app->get_description(), {}, {}};
    for (const CLI::Option* o : shown_options(*app)) {
      Flag f = flag_of(*o);
      if (o->get_positional()) c.places.push_back(f);
      if (!f.names.empty()) c.flags.push_back(std::move(f));
    }
    c.flags.push_back({{"-h", "--help"}, "Print the most used flags", Offer::nothing, false, {}});
    c.flags.push_back({{"--help-all"}, "Print all flags", Offer::nothing, false, {}});
    all.push_back(std::move(c));
  }
  return all;
}

std::string join(const std::vector<std::string>& words, const char* between) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : between) + word;
  return text;
}

// --- bash

std::string bash_offer(const Flag& f) {
  const std::string list = join(f.list, " ");
  switch (f.offer) {
    case Offer::list:
      return fmt::format("_lorry_words '{}'", list);
    case Offer::folders:
      return fmt::format("_lorry_words '{}'; _lorry_paths -d", list);
    case Offer::files:
      return "_lorry_paths -f";
    case Offer::named_folder:
      return "_lorry_paths -d";
    case Offer::nothing:
      break;
  }
  return ":";
}

std::string bash_command(const CommandFlags& c) {
  std::string cases;
  std::vector<std::string> names;
  for (const Flag& f : c.flags) {
    names.insert(names.end(), f.names.begin(), f.names.end());
    if (!f.takes_value) continue;
    cases += fmt::format("        {}) {}; return ;;\n", join(f.names, "|"), bash_offer(f));
  }
  std::string place = ":";
  if (!c.places.empty()) place = bash_offer(c.places.front());
  return fmt::format(
      "    {})\n      case $flag in\n{}      esac\n"
      "      if [[ $cur == -* ]]; then _lorry_words '{}'; else {}; fi ;;\n",
      c.name, cases, join(names, " "), place);
}

constexpr const char* kBash = R"sh(# bash completion of lorry: eval "$(lorry completion bash)"
_lorry_words() { COMPREPLY+=($(compgen -W "$1" -- "$cur")); }
_lorry_paths() {
  local IFS=$'\n'
  compopt -o filenames 2>/dev/null
  COMPREPLY+=($(compgen "$1" -- "$cur"))
}
_lorry() {
  local cur=${COMP_WORDS[COMP_CWORD]} flag=${COMP_WORDS[COMP_CWORD-1]}
  local named=no
  COMPREPLY=()
  # "--flag=value" comes as three words, and so does NAME=FOLDER; demo:dbrx does as well.
  if [[ $cur == = ]]; then
    cur= named=$flag
  elif [[ $flag == = ]]; then
    flag=${COMP_WORDS[COMP_CWORD-2]} named=$flag
  elif [[ $cur == : || $flag == : ]]; then
    [[ $cur == : ]] && cur=
    [[ demo == "${COMP_WORDS[COMP_CWORD-1]}" || demo == "${COMP_WORDS[COMP_CWORD-2]}" ]] &&
      _lorry_words 'mixtral dbrx'
    return
  fi
  if [[ $named != no && $named != -* ]]; then
    _lorry_paths -d
    return
  fi
  if [[ $COMP_CWORD == 1 ]]; then
    _lorry_words '@COMMANDS@ --help --help-all --version'
    return
  fi
  case ${COMP_WORDS[1]} in
@CASES@  esac
}
complete -F _lorry lorry
)sh";

void replace(std::string& text, const std::string& what, const std::string& by) {
  text.replace(text.find(what), what.size(), by);
}

std::string bash_script(const std::vector<CommandFlags>& commands) {
  std::string script = kBash;
  std::vector<std::string> names;
  std::string cases;
  for (const CommandFlags& c : commands) {
    names.push_back(c.name);
    cases += bash_command(c);
  }
  replace(script, "@COMMANDS@", join(names, " "));
  replace(script, "@CASES@", cases);
  return script;
}

// --- zsh

// For the brackets and colons of _arguments, within single quotes.
std::string zsh_text(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '\'') {
      out += "'\\''";
    } else if (c == '[' || c == ']' || c == ':' || c == '\\') {
      out += std::string("\\") + c;
    } else {
      out += c;
    }
  }
  return out;
}

std::string zsh_offer(const Flag& f) {
  switch (f.offer) {
    case Offer::list:
      return fmt::format("value:({})", join(f.list, " "));
    case Offer::folders:
      return "folder:_directories";
    case Offer::files:
      return "file:_files";
    case Offer::named_folder:
      return "adapter:_lorry_named";
    case Offer::nothing:
      break;
  }
  return "value: ";
}

std::string zsh_command(const CommandFlags& c) {
  std::string specs;
  for (const Flag& f : c.flags) {
    for (const std::string& name : f.names) {
      const std::string value = f.takes_value ? ":" + zsh_offer(f) : "";
      const char* equals = f.takes_value && name.starts_with("--") ? "=" : "";
      specs += fmt::format(" \\\n        '*{}{}[{}]{}'", name, equals, zsh_text(f.says), value);
    }
  }
  for (const Flag& f : c.places) specs += fmt::format(" \\\n        ':{}'", zsh_offer(f));
  return fmt::format("    {})\n      _arguments{} ;;\n", c.name, specs);
}

std::string zsh_script(const std::vector<CommandFlags>& commands) {
  std::string names, cases;
  for (const CommandFlags& c : commands) {
    names += fmt::format("    '{}:{}'\n", c.name, zsh_text(c.says));
    cases += zsh_command(c);
  }
  return fmt::format(
      "#compdef lorry\n"
      "# zsh completion of lorry: lorry completion zsh > a folder of $fpath, as _lorry\n"
      "_lorry_named() {{ if compset -P '*='; then _directories; else _message 'NAME=FOLDER'; fi "
      "}}\n"
      "_lorry() {{\n  local -a commands\n  commands=(\n{}  )\n"
      "  if (( CURRENT == 2 )); then\n    _describe command commands\n    return\n  fi\n"
      "  shift words\n  (( CURRENT-- ))\n  case $words[1] in\n{}  esac\n}}\n"
      "if [ \"$funcstack[1]\" = \"_lorry\" ]; then _lorry \"$@\"; else compdef _lorry lorry; fi\n",
      names, cases);
}

// --- fish

std::string fish_text(const std::string& text) {
  std::string out = "'";
  for (const char c : text) {
    if (c == '\'' || c == '\\') out += '\\';
    out += c;
  }
  return out + "'";
}

std::string fish_value(const Flag& f) {
  switch (f.offer) {
    case Offer::list:
      return fmt::format(" -x -a '{}'", join(f.list, " "));
    case Offer::folders:
    case Offer::named_folder:
      return " -x -a '(__fish_complete_directories)'";
    case Offer::files:
      return " -r -F";
    case Offer::nothing:
      break;
  }
  return f.takes_value ? " -x" : "";
}

std::string fish_script(const std::vector<CommandFlags>& commands) {
  std::string script =
      "# fish completion of lorry: lorry completion fish > ~/.config/fish/completions/lorry.fish\n"
      "complete -c lorry -f\n";
  for (const CommandFlags& c : commands) {
    script += fmt::format("complete -c lorry -n __fish_use_subcommand -a {} -d {}\n", c.name,
                          fish_text(c.says));
    const std::string within =
        fmt::format("complete -c lorry -n '__fish_seen_subcommand_from {}'", c.name);
    for (const Flag& f : c.flags) {
      std::string names;
      for (const std::string& name : f.names) {
        names += name.starts_with("--") ? " -l " + name.substr(2) : " -s " + name.substr(1);
      }
      script += within + names + fish_value(f) + " -d " + fish_text(f.says) + "\n";
    }
    for (const Flag& f : c.places) {
      const bool paths = f.offer == Offer::folders || f.offer == Offer::files;
      if (paths) script += within + " -F\n";
      if (!f.list.empty()) script += within + fmt::format(" -a '{}'\n", join(f.list, " "));
    }
  }
  return script;
}

}  // namespace

std::string completion_script(const CLI::App& lorry, std::string_view shell) {
  const std::vector<CommandFlags> commands = commands_of(lorry);
  if (shell == "bash") return bash_script(commands);
  if (shell == "zsh") return zsh_script(commands);
  if (shell == "fish") return fish_script(commands);
  fail(Code::invalid_argument, "there are no completions for {}: expected bash, zsh or fish",
       quote(shell));
}

}  // namespace lorry
