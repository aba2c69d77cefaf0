// A copy of a golden tokenizer folder that a test may edit; removed with the object.
#pragma once
#include <filesystem>
#include <functional>
#include <string>

#include <boost/json/serialize.hpp>
#include <unistd.h>

#include "text/golden.h"

namespace lorry::golden {

class EditedModel {
 public:
  explicit EditedModel(const std::string& name) {
    static int count = 0;
    path_ = std::filesystem::temp_directory_path() /
            ("lorry_text_" + std::to_string(getpid()) + "_" + std::to_string(count++));
    std::filesystem::create_directories(path_);
    for (const auto& entry : std::filesystem::directory_iterator(folder(name) + "/model")) {
      if (entry.path().extension() == ".safetensors") continue;
      std::filesystem::copy_file(entry.path(), path_ / entry.path().filename());
    }
  }
  ~EditedModel() { std::filesystem::remove_all(path_); }
  EditedModel(const EditedModel&) = delete;
  EditedModel& operator=(const EditedModel&) = delete;

  std::string path() const { return path_.string(); }
  std::string file(const std::string& name) const { return (path_ / name).string(); }

  void edit(const std::string& name, const std::function<void(json::object&)>& change) {
    json::object content = parse_json_file(file(name)).as_object();
    change(content);
    write(name, json::serialize(content));
  }

  void write(const std::string& name, const std::string& content) {
    std::filesystem::remove(path_ / name);
    write_file(file(name), content);
  }

  // Appends a token behind the vocabulary.
  void add_token(const std::string& content, bool special) {
    edit("tokenizer.json", [&](json::object& tokenizer) {
      json::array& tokens = tokenizer.at("added_tokens").as_array();
      size_t id = tokenizer.at("model").as_object().at("vocab").as_object().size();
      for (const json::value& token : tokens) {
        if (token.as_object().at("id").to_number<size_t>() >= id) ++id;
      }
      tokens.push_back({{"id", id},
                        {"content", content},
                        {"single_word", false},
                        {"lstrip", false},
                        {"rstrip", false},
                        {"normalized", false},
                        {"special", special}});
    });
  }

 private:
  std::filesystem::path path_;
};

}  // namespace lorry::golden
