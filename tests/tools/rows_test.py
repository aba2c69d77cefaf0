"""Every row of the reference tables that the adapters answer to has a test with its name.

The tables: bad inputs (F: adapters, G: hub and downloads) and the faults of LoRAX (1 to 15).
"""

import pathlib
import re
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent
GTEST = re.compile(r"^\s*(?:TEST|TEST_F|TEST_P|TYPED_TEST)\(\s*\w+,\s*(\w+)\s*\)", re.M)
PYTEST = re.compile(r"^\s*(?:async )?def test_(\w+)\(", re.M)


def names():
    found = []
    for path in ROOT.rglob("*.cpp"):
        found += GTEST.findall(path.read_text(encoding="utf-8"))
    for path in ROOT.rglob("test_*.py"):
        found += PYTEST.findall(path.read_text(encoding="utf-8"))
    return found


class Rows(unittest.TestCase):
    def missing(self, rows):
        all_names = names()
        return [row for row in rows
                if not any(re.search(rf"(^|_){row}(_|$)", name) for name in all_names)]

    def test_bad_adapters(self):
        self.assertEqual(self.missing([f"F{i}" for i in range(1, 17)]), [])

    def test_hub_and_downloads(self):
        self.assertEqual(self.missing([f"G{i}" for i in range(1, 8)]), [])

    def test_faults_of_lorax(self):
        self.assertEqual(self.missing([f"lorax_fault_{i}" for i in range(1, 16)]), [])


if __name__ == "__main__":
    unittest.main()
