#include "base/files.h"

#include <filesystem>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "base/error.h"

namespace lorry {
namespace {

namespace fs = std::filesystem;

class Files : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = join_path(testing::TempDir(), "files_test.XXXXXX");
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
  }
  void TearDown() override { fs::remove_all(folder_); }

  std::string path(const std::string& name) const { return join_path(folder_, name); }
  size_t count() const {
    return static_cast<size_t>(
        std::distance(fs::directory_iterator(folder_), fs::directory_iterator()));
  }
  static Code code_of_reading(const std::string& path, size_t max_bytes) {
    try {
      read_file(path, max_bytes);
    } catch (const Error& e) {
      EXPECT_THAT(e.what(), testing::HasSubstr(path));
      return e.code();
    }
    return Code::internal;
  }

  std::string folder_;
};

TEST_F(Files, what_is_written_is_read_back) {
  const std::string content("a\0b\n", 4);
  write_file(path("x"), content);
  EXPECT_EQ(read_file(path("x")), content);
  write_file(path("x"), "");
  EXPECT_EQ(read_file(path("x")), "");
  EXPECT_EQ(count(), 1U);
}

TEST_F(Files, reading_is_limited_and_names_the_file) {
  write_file(path("x"), std::string(200000, 'x'));
  EXPECT_EQ(read_file(path("x"), 200000).size(), 200000U);
  EXPECT_EQ(code_of_reading(path("x"), 199999), Code::bad_file);
  EXPECT_EQ(code_of_reading(path("absent"), 10), Code::not_found);
  EXPECT_EQ(code_of_reading(folder_, 10), Code::bad_file);
}

TEST_F(Files, existence_tells_files_from_folders) {
  write_file(path("x"), "");
  EXPECT_TRUE(file_exists(path("x")));
  EXPECT_FALSE(file_exists(folder_));
  EXPECT_TRUE(is_directory(folder_));
  EXPECT_FALSE(is_directory(path("x")));
  EXPECT_FALSE(file_exists(path("absent")));
}

TEST_F(Files, an_atomic_file_that_is_not_committed_leaves_nothing) {
  write_file(path("x"), "old");
  {
    AtomicFile file(path("x"));
    file.write("new");
  }
  EXPECT_EQ(read_file(path("x")), "old");
  EXPECT_EQ(count(), 1U);
}

TEST_F(Files, writers_of_one_path_do_not_mix) {
  AtomicFile a(path("x"));
  AtomicFile b(path("x"));
  a.write("first");
  b.write("second");
  a.commit();
  EXPECT_EQ(read_file(path("x")), "first");
  b.commit();
  EXPECT_EQ(read_file(path("x")), "second");
  EXPECT_EQ(count(), 1U);
}

TEST_F(Files, writing_where_nothing_can_be_written_is_an_error) {
  EXPECT_THROW(write_file(path("no/folder/x"), "x"), Error);
  fs::create_directory(path("folder"));
  EXPECT_THROW(write_file(path("folder"), "x"), Error);
  EXPECT_EQ(count(), 1U);
}

TEST_F(Files, what_is_no_regular_file_is_not_replaced) {
  ASSERT_EQ(mkfifo(path("pipe").c_str(), 0600), 0);
  fs::create_symlink(path("pipe"), path("link"));
  EXPECT_THROW(write_file(path("pipe"), "x"), Error);
  EXPECT_THROW(write_file(path("link"), "x"), Error);
  EXPECT_TRUE(fs::is_fifo(path("pipe")));
  EXPECT_TRUE(fs::is_symlink(path("link")));
  EXPECT_EQ(count(), 2U);
}

TEST(JoinPath, puts_one_slash) {
  EXPECT_EQ(join_path("a", "b"), "a/b");
  EXPECT_EQ(join_path("a/", "b"), "a/b");
  EXPECT_EQ(join_path("", "b"), "b");
}

}  // namespace
}  // namespace lorry
