// A golden model that was packed, and how the logits of two models compare.
#pragma once
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <stdlib.h>

#include "base/files.h"
#include "engine/harness.h"
#include "engine/loaded_model.h"
#include "models/packed_model.h"

namespace lorry::test {

// A folder with config.json and the packed weights of a golden model.
class PackedFolder {
 public:
  PackedFolder(const std::string& model_case, const WeightFormats& formats) {
    std::string pattern = join_path(testing::TempDir(), "packed_test.XXXXXX");
    EXPECT_NE(mkdtemp(pattern.data()), nullptr);
    path_ = pattern;
    const std::string from = golden(model_case + "/model");
    std::filesystem::copy_file(from + "/config.json", path_ + "/config.json");
    const ModelFiles files = open_model(from);
    const Architecture& architecture = architecture_of(files.config.text("model_type"));
    Spec spec = architecture.spec(files.config);
    spec.formats = formats;
    ThreadPool pool(2);
    const auto ops = make_cpu_ops(Dtype::bf16, pool);
    write_packed(join_path(path_, std::string(kPackedName)), architecture, spec, files, *ops);
  }
  ~PackedFolder() { std::filesystem::remove_all(path_); }
  PackedFolder(const PackedFolder&) = delete;
  PackedFolder& operator=(const PackedFolder&) = delete;

  const std::string& path() const { return path_; }
  void replace_in_config(const std::string& from, const std::string& to) const {
    std::string text = read_file(path_ + "/config.json");
    ASSERT_NE(text.find(from), std::string::npos) << text;
    text.replace(text.find(from), from.size(), to);
    write_file(path_ + "/config.json", text);
  }

 private:
  std::string path_;
};

inline std::vector<float> copy_of(const Tensor& t) {
  std::vector<float> values;
  for (int64_t r = 0; r < t.rows(); ++r) {
    values.insert(values.end(), t.row<const float>(r), t.row<const float>(r) + t.cols());
  }
  return values;
}

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace lorry::test
