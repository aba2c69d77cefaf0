#!/usr/bin/env python3
"""Checks that files and functions stay small enough to be read at once.

A file has at most 400 lines (600 is a failure), a C++ function at most 60 (100 is a failure).
Exit status 1 when there is a failure; what is between the two limits is printed and passes.
"""

import argparse
import pathlib
import re
import sys

FILE_LIMITS = (400, 600)
FUNCTION_LIMITS = (60, 100)

# What may be longer, and why: "path" for a file, "path:function" for a function.
EXCEPTIONS = {}

FOLDERS = ("src", "include", "tests", "examples", "bench", "fuzz", "ffi/src", "ffi/include", "tools", "demo")
CPP = {".h", ".cpp", ".cu", ".cuh"}
OTHERS = {".rs", ".py", ".sh"}

# Strings, characters and comments, in one pass; raw strings first.
NOISE = re.compile(
    r'R"(?P<tag>[^()\s\\]*)\(.*?\)(?P=tag)"'
    r'|"(?:\\.|[^"\\\n])*"'
    r"|(?<![0-9A-Fa-f])'(?:\\.|[^'\\\n])+'"
    r"|//[^\n]*"
    r"|/\*.*?\*/",
    re.DOTALL)
DIRECTIVE = re.compile(r"^[ \t]*#(?:[^\n\\]|\\.|\\\n)*", re.MULTILINE)

# After the parameter list: qualifiers, a return type, a requires clause, constructor initialisers.
FUNCTION = re.compile(
    r"\)\s*(const|volatile|noexcept|override|final|mutable|try|&&?|\s)*(\([^()]*\)\s*)?"
    r"(->[^;{}]*|requires\b[^;{}]*)?$|\)[^;]*?(?<!:):(?!:)[^;]*[)}]\s*$")
CONTROL = re.compile(r"^(if|else|for|while|do|switch|catch|return)\b")
SCOPE = re.compile(r"\b(namespace|class|struct|union|extern)\b")


def without_noise(text):
    """`text` with comments, strings and directives taken out and every line kept."""
    def blank(match):
        found = match.group(0)
        return ('""' if found[0] in "\"R'" else " ") + "\n" * found.count("\n")
    text = NOISE.sub(blank, text)
    return DIRECTIVE.sub(lambda match: "\n" * match.group(0).count("\n"), text)


def function_name(header):
    """What to call the function with this header: all of it for a TEST, else the name before (."""
    header = " ".join(header.split())
    if re.match(r"(TEST|TEST_F|TEST_P|TYPED_TEST|BENCHMARK\w*)\s*\(", header):
        return header
    name = re.search(r"(operator[^\w\s(]*\s*(?:\(\))?|[\w:~]+)\s*\(", header)
    return name.group(1) if name else header[:40]


def functions(text):
    """(name, first line, number of lines) of each function of a C++ source.

    A reading of braces, not of the language: a block is a function when it stands in a file, a
    namespace or a class, and what stands before it ends like a parameter list. A lambda counts
    as part of the function around it.
    """
    stack = []  # (kind, header, first line); kind: scope, function, other
    header, header_line, line = "", 1, 1
    for char in without_noise(text):
        if char == "\n":
            line += 1
        if char == "{":
            kind = "other"
            stripped = header.strip()
            if all(block[0] == "scope" for block in stack):
                if FUNCTION.search(stripped) and not CONTROL.match(stripped):
                    kind = "function"
                elif SCOPE.search(stripped) and not stripped.endswith("="):
                    kind = "scope"
            stack.append((kind, header, header_line))
            header = ""
        elif char == "}" and stack:
            kind, before, first = stack.pop()
            if kind == "function":
                yield function_name(before), first, line - first + 1
            # A braced initialiser does not end what it stands in.
            header, header_line = (before + "{}", first) if kind == "other" else ("", line)
        elif char == ";" and not parenthesis_open(header):
            header = ""
        else:
            if not header.strip():
                header_line = line
                header = ""
            header += char
            if re.search(r"\b(public|private|protected)\s*:$", header):
                header = ""


def parenthesis_open(header):
    return header.count("(") > header.count(")")


def check_text(path, text, exceptions):
    """(is a failure, words) for all that is too long in one file."""
    lines = text.count("\n")
    if lines > FILE_LIMITS[0] and path not in exceptions:
        yield lines > FILE_LIMITS[1], f"{path}: {lines} lines (at most {FILE_LIMITS[0]})"
    if pathlib.PurePosixPath(path).suffix in CPP:
        for name, first, length in functions(text):
            if length > FUNCTION_LIMITS[0] and f"{path}:{name}" not in exceptions:
                yield (length > FUNCTION_LIMITS[1],
                       f"{path}:{first}: {name} has {length} lines (at most {FUNCTION_LIMITS[0]})")


def check_tree(root, exceptions):
    """(is a failure, words) for the tree at `root`."""
    for name in exceptions:
        if not (root / name.partition(":")[0]).exists():
            yield True, f"tools/check_sizes.py: the exception {name} names a file that is not there"
    for top in FOLDERS:
        for source in sorted((root / top).rglob("*")):
            path = source.relative_to(root).as_posix()
            if source.suffix in CPP | OTHERS and "/target/" not in path:
                yield from check_text(path, source.read_text(), exceptions)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", nargs="?", type=pathlib.Path,
                        default=pathlib.Path(__file__).resolve().parent.parent)
    failures = 0
    for failure, words in check_tree(parser.parse_args().root, EXCEPTIONS):
        print(words + ("" if failure else " (warning)"))
        failures += failure
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
