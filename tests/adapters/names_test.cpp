#include "adapters/names.h"

#include <gtest/gtest.h>

#include "adapters/support.h"

namespace lorry {
namespace {

TEST(AdapterNames, F6NamesOutsideTheGrammar) {
  using namespace std::string_literals;
  for (const std::string& name : {"../../x"s,
                                  "/etc"s,
                                  "~"s,
                                  "a\0b"s,
                                  "%2e%2e"s,
                                  std::string(10240, 'a'),
                                  "a\r\nb"s,
                                  ""s,
                                  "."s,
                                  ".."s,
                                  "a/.."s,
                                  "a/."s,
                                  "a/b/c"s,
                                  "a/"s,
                                  "_a"s,
                                  "-a"s,
                                  "a b"s,
                                  "a@"s,
                                  "a@.."s,
                                  "a@../b"s,
                                  "a@b//c"s,
                                  "a@b/"s,
                                  "caf\xc3\xa9"s,
                                  "a\n"s,
                                  std::string(257, 'a')}) {
    test::expect_error(Code::invalid_argument, {"not valid"}, [&] { check_adapter_name(name); });
  }
}

TEST(AdapterNames, GrammarAccepts) {
  for (const char* name :
       {"a", "A9", "sql", "org/sql-lora_v1.2", "org/x@main", "x@refs/pr/1", "a..b"}) {
    EXPECT_NO_THROW(check_adapter_name(name)) << name;
  }
  EXPECT_NO_THROW(check_adapter_name(std::string(256, 'a')));
}

TEST(AdapterNames, F16MessagesHaveNoControlBytes) {
  try {
    check_adapter_name("a\r\nX: \x80\x01");
    FAIL();
  } catch (const Error& e) {
    for (const char c : std::string(e.what())) EXPECT_TRUE(c >= 0x20 && c < 0x7f) << e.what();
  }
}

TEST(AdapterNames, LocalFoldersOnlyInsideTheRoot) {
  const test::TempFolder temp;
  namespace fs = std::filesystem;
  const std::string root = temp.path() + "/root";
  fs::create_directories(root + "/a");
  fs::create_directories(root + "/org/b");
  fs::create_directories(temp.path() + "/outside");
  fs::create_directories(temp.path() + "/root-not");
  fs::create_directory_symlink(temp.path() + "/outside", root + "/link");
  fs::create_directory_symlink(temp.path() + "/root-not", root + "/link2");
  fs::create_directory_symlink(root, root + "/self");
  fs::create_directory_symlink(root + "/a", root + "/alias");
  write_file(root + "/file", "x");

  EXPECT_EQ(local_adapter_folder(root, "a"), root + "/a");
  EXPECT_EQ(local_adapter_folder(root, "org/b"), root + "/org/b");
  EXPECT_EQ(local_adapter_folder(root + "/", "alias"), root + "/a");
  for (const char* name : {"link", "link2", "self"}) {
    test::expect_error(Code::invalid_argument, {name, "out of the adapter root"},
                       [&] { local_adapter_folder(root, name); });
  }
  for (const char* name : {"none", "file", "org/none", "a@main"}) {
    test::expect_error(Code::not_found, {name}, [&] { local_adapter_folder(root, name); });
  }
}

}  // namespace
}  // namespace lorry
