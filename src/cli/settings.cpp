#include "cli/settings.h"

#include <algorithm>
#include <cctype>
#include <map>
#include <optional>
#include <sstream>
#include <vector>

#include <CLI/CLI.hpp>
#include <arpa/inet.h>
#include <yaml-cpp/yaml.h>

#include "base/error.h"
#include "cli/environment.h"
#include "cli/help.h"
#include "cli/values.h"

namespace lorry {

namespace {

using Values = std::vector<std::string>;

bool is_setting(const CLI::Option& option) {
  const auto& names = option.get_lnames();
  return !names.empty() && names.front() != "help" && names.front() != "help-all" &&
         names.front() != "config";
}

bool takes_many(const CLI::Option& option) { return option.get_expected_max() > 1; }

std::string variable_name(std::string flag) {
  for (char& c : flag) c = c == '-' ? '_' : static_cast<char>(std::toupper(c));
  return flag;
}

bool is_address(const std::string& text) {
  in_addr v4{};
  in6_addr v6{};
  return text == "localhost" || inet_pton(AF_INET, text.c_str(), &v4) == 1 ||
         inet_pton(AF_INET6, text.c_str(), &v6) == 1;
}

void set(CLI::Option& option, const Values& values, const std::string& origin) {
  if (values.size() > 1 && !takes_many(option)) {
    fail(Code::invalid_argument, "{}: expected one value, found {}", origin, values.size());
  }
  try {
    for (const std::string& value : values) {
      const bool is_flag = option.get_expected_max() == 0;
      option.add_result(is_flag ? option.get_flag_value(option.get_lnames().front(), value)
                                : value);
    }
    option.run_callback();
  } catch (const CLI::Error& e) {
    fail(Code::invalid_argument, "{}: {}", origin, e.what());
  }
}

// From the first of the flag's names that is set.
bool set_from_environment(CLI::Option& option) {
  for (const std::string& name : option.get_lnames()) {
    const std::string variable = variable_name(name);
    const auto text = environment(variable);
    if (!text) continue;
    if ((name == "host" || name == "hostname") && !is_address(*text)) continue;
    Values values{*text};
    if (takes_many(option)) {
      std::istringstream words(*text);
      values.assign(std::istream_iterator<std::string>(words), {});
    }
    set(option, values, "environment variable " + variable);
    return true;
  }
  return false;
}

struct Setting {
  Values values;
  std::string origin;
};

Values values_of(const YAML::Node& node, const std::string& origin) {
  Values values;
  const auto scalar = [&](const YAML::Node& n) {
    if (!n.IsScalar()) fail(Code::bad_file, "{}: expected a plain value in the list", origin);
    return n.Scalar();
  };
  if (node.IsScalar()) {
    values.push_back(node.Scalar());
  } else if (node.IsSequence()) {
    for (const auto& item : node) values.push_back(scalar(item));
  } else if (node.IsMap()) {
    for (const auto& item : node) values.push_back(scalar(item.first) + "=" + scalar(item.second));
  } else {
    fail(Code::bad_file, "{}: has no value", origin);
  }
  return values;
}

// The settings of a file, by the name of the flag.
std::map<std::string, Setting> read_settings(const std::string& file) {
  std::map<std::string, Setting> settings;
  try {
    const YAML::Node root = YAML::Load(read_flag_file("--config", file, size_t{1} << 20));
    if (root.IsNull()) return settings;
    if (!root.IsMap()) fail(Code::bad_file, "{}: expected lines of `flag: value`", file);
    for (const auto& item : root) {
      std::string name = item.first.IsScalar() ? item.first.Scalar() : "";
      std::replace(name.begin(), name.end(), '_', '-');
      const std::string origin =
          fmt::format("{}:{}: {}", file, item.first.Mark().line + 1, quote(name));
      if (!settings.emplace(name, Setting{values_of(item.second, origin), origin}).second) {
        fail(Code::bad_file, "{}: is there twice", origin);
      }
    }
  } catch (const YAML::Exception& e) {
    fail(Code::bad_file, "{}:{}: {}", file, e.mark.line + 1, e.msg);
  }
  return settings;
}

void check_known(const CLI::App& app, const std::map<std::string, Setting>& settings) {
  for (const auto& [name, setting] : settings) {
    const CLI::Option* option = app.get_option_no_throw("--" + name);
    if (option != nullptr && is_setting(*option)) continue;
    fail(Code::bad_file, "{}: there is no such flag{}; lorry {} --help-all lists them",
         setting.origin, did_you_mean("--" + name, flag_names(app)), app.get_name());
  }
}

}  // namespace

bool has_settings(const CLI::App& app) { return app.get_option_no_throw("--config") != nullptr; }

std::string variable_of(const CLI::Option& option) {
  return is_setting(option) ? variable_name(option.get_lnames().front()) : "";
}

void apply_settings(CLI::App& app, const std::string& file) {
  std::map<std::string, Setting> settings;
  if (!file.empty()) settings = read_settings(file);
  check_known(app, settings);
  for (CLI::Option* option : app.get_options()) {
    if (!is_setting(*option) || option->count() > 0) continue;
    if (set_from_environment(*option)) continue;
    for (const std::string& name : option->get_lnames()) {
      const auto at = settings.find(name);
      if (at == settings.end()) continue;
      if (option->count() > 0) {
        fail(Code::bad_file, "{}: is another name for a key that is there too", at->second.origin);
      }
      set(*option, at->second.values, at->second.origin);
    }
  }
}

}  // namespace lorry
