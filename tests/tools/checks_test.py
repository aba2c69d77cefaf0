"""tools/check_layers.py and tools/check_sizes.py find what they are there to find, and only that."""

import pathlib
import sys
import tempfile
import unittest

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tools"))
import check_layers  # noqa: E402
import check_sizes  # noqa: E402


class Layers(unittest.TestCase):
    def complaints(self, files):
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            for name, text in files.items():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_text(text)
            return list(check_layers.check_tree(root))

    TREE = {
        "src/base/CMakeLists.txt": "lorry_library(base EXTERNAL fmt::fmt)",
        "src/ops/CMakeLists.txt": "lorry_library(ops DEPS base)",
        "src/kv/CMakeLists.txt": "lorry_library(kv DEPS ops)",
        "src/adapters/CMakeLists.txt": "lorry_library(adapters\n  DEPS ops # weights\n  EXTERNAL x::y)",
        "src/models/CMakeLists.txt": "lorry_library(models DEPS ops kv)",
        "include/lorry/tensor.h": "#pragma once\n#include <vector>\n",
        "include/lorry/forward.h": '#pragma once\n#include "lorry/tensor.h"\n#include "kv/pool.h"\n',
    }

    def check(self, path, text, expected):
        """`text` in the file `path` gets one complaint for each of `expected`, which it contains."""
        found = self.complaints({**self.TREE, path: text})
        self.assertEqual(len(found), len(expected), found)
        for line, words in zip(found, expected):
            self.assertIn(words, line)

    def test_a_tree_in_order_gets_no_complaint(self):
        self.check("src/models/layer.cpp",
                   '#include "models/layer.h"\n#include <sys/mman.h>\n#include "base/error.h"\n'
                   '#include "lorry/forward.h"\n#include <fmt/core.h>\n', [])

    def test_includes_go_down_only(self):
        self.check("src/ops/x.cpp", '#include "kv/pool.h"\n', ["src/ops/x.cpp:1: "])
        self.check("src/ops/x.h", "\n#include \"lorry/forward.h\"\n", ["src/ops/x.h:2: "])
        self.check("include/lorry/tensor.h", '#include "ops/ops.h"\n', ["tensor.h:1: "])

    def test_siblings_do_not_meet(self):
        self.check("src/models/x.cpp", '#include "adapters/plan.h"\n', ["may not include adapters"])
        self.check("src/adapters/x.cpp", '#include "models/spec.h"\n', ["may not include models"])

    def test_what_is_allowed_but_not_linked_is_refused(self):
        self.check("src/adapters/x.cpp", '#include "weights/config.h"\n', ["may not include weights"])

    def test_a_link_line_cannot_point_up(self):
        self.check("src/kv/CMakeLists.txt", "lorry_library(kv DEPS ops models)", ["may not stand on models"])

    def test_a_folder_needs_a_library_and_a_place_in_the_design(self):
        self.check("src/kv/CMakeLists.txt", "# nothing\n", ["no lorry_library(kv"])
        self.check("src/utils/x.h", "", ["src/utils: not a folder of the design"])

    def test_includes_are_written_from_src(self):
        self.check("src/ops/x.cpp", '#include "x.h"\n#include "../base/error.h"\n',
                   ["not written from src/", "not written from src/"])

    def test_vendor_headers_stay_behind_their_fence(self):
        self.check("src/ops/x.cpp", "#include <immintrin.h>\n", ["belongs below src/ops/cpu"])
        self.check("src/ops/cpu/x.cpp", "#include <immintrin.h>\n", [])
        self.check("src/base/x.cpp", '#include "lorry_ffi.h"\n', ["belongs below src/text"])
        self.check("src/models/x.cpp", "#include <cuda_runtime.h>\n", ["belongs below src/ops/cuda"])

    def test_conditionals_stay_in_the_backends(self):
        self.check("src/base/x.h", "#pragma once\n#ifdef __linux__\n#endif\n", ["src/base/x.h:2: "])
        self.check("src/ops/cpu/x.cpp", "#if defined(__AVX2__)\n#endif\n", [])

    def test_a_type_has_one_definition(self):
        twice = "namespace lorry {\nstruct Pool {\n};\n}\n"
        self.check("src/kv/other.h", "namespace lorry {\nstruct Other {\n};\n}\n", [])
        found = self.complaints({**self.TREE, "src/kv/pool.h": twice, "src/ops/pool.h": twice})
        self.assertEqual(len(found), 1, found)
        self.assertIn("Pool is also defined", found[0])
        hidden = "namespace lorry {\nnamespace {\nstruct Pool {\n};\n}\n}\n"
        self.assertEqual(self.complaints({**self.TREE, "src/kv/pool.h": twice,
                                          "src/ops/pool.h": hidden}), [])

    def test_the_environment_is_read_in_cli_only(self):
        self.check("src/kv/x.cpp", 'auto v = std::getenv("HOME");\n', ["environment"])
        self.check("src/kv/x.cpp", "// not from getenv()\n", [])


class Sizes(unittest.TestCase):
    def names(self, text):
        return [name for name, _, _ in check_sizes.functions(text)]

    def body(self, lines):
        return "{\n" + "  f();\n" * (lines - 2) + "}\n"

    def test_finds_functions_and_nothing_else(self):
        self.assertEqual(self.names('''
            namespace a::b {
            enum class E : int { x, y };
            constexpr int table[] = {1, 2};
            struct S final : public T<int> {
             public:
              S() : a_{1}, b_(2) { if (a_) { g(); } }
              explicit S(std::vector<int> v = {}) noexcept : a_(1), b_{2} {}
              ~S() override { }
              int operator()(int x) const { return x; }
              bool operator==(const S& s) const noexcept { return true; }
              int declared(int x) const;
              int a_{0}, b_ = 3;
            };
            template <typename T> requires Small<T>
            auto f(T t) -> std::vector<T> { return {t}; }
            const char* text = R"x( void no() { )x" "}{";
            char c = '{'; int n = 1'000'000;
            #define MACRO(x) void x() { \\
              }
            extern "C" { int c_function(int x) noexcept(true) { for (;;) { } } }
            }  // namespace }
            TEST(Suite, holds) { auto l = [](int x) { return x; }; }
            '''),
            ["S", "S", "~S", "operator()", "operator==", "f", "c_function", "TEST(Suite, holds)"])

    def test_counts_from_the_name_to_the_brace(self):
        text = "int a;\n\nvoid f(int x,\n       int y) " + self.body(10)
        self.assertEqual(list(check_sizes.functions(text)), [("f", 3, 11)])

    def check(self, text, exceptions=()):
        return [failure for failure, _ in check_sizes.check_text("src/base/x.cpp", text, exceptions)]

    def test_limits_of_functions(self):
        self.assertEqual(self.check("void f() " + self.body(60)), [])
        self.assertEqual(self.check("void f() " + self.body(61)), [False])
        self.assertEqual(self.check("void f() " + self.body(101)), [True])
        self.assertEqual(self.check("void f() " + self.body(101), ["src/base/x.cpp:f"]), [])

    def test_limits_of_files(self):
        self.assertEqual(self.check("int a;\n" * 400), [])
        self.assertEqual(self.check("int a;\n" * 401), [False])
        self.assertEqual(self.check("int a;\n" * 601), [True])
        self.assertEqual(self.check("int a;\n" * 601, ["src/base/x.cpp"]), [])

    def test_an_exception_for_a_lost_file_is_a_failure(self):
        with tempfile.TemporaryDirectory() as folder:
            found = list(check_sizes.check_tree(pathlib.Path(folder), {"src/gone.cpp": "was long"}))
        self.assertEqual([failure for failure, _ in found], [True])

    def test_each_exception_has_a_reason(self):
        self.assertTrue(all(reason.strip() for reason in check_sizes.EXCEPTIONS.values()))


if __name__ == "__main__":
    unittest.main()
