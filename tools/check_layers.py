#!/usr/bin/env python3
"""Checks the house rules that a compiler does not see (docs/design.md, sections 2 and 3).

 - a folder of src/ includes only the folders below it, and its lorry_library(DEPS ...) says so;
 - vendor headers, conditional compilation and the environment stay in the folders they belong to.

Exit status 1 and one line for each breach, 0 when there is none.
"""

import argparse
import pathlib
import re
import sys

# What each folder stands on. What stands below those may be included as well.
BELOW = {
    "base": [],
    "fetch": ["base"],
    "text": ["base"],
    "weights": ["base"],
    "ops": ["base"],
    "parallel": ["ops"],
    "kv": ["ops"],
    "adapters": ["weights", "ops"],
    "models": ["weights", "ops", "kv", "parallel"],
    "engine": ["models", "adapters", "kv", "text"],
    "serve": ["engine"],
    "cli": ["serve", "fetch"],
}

# The layer of each public header, include/lorry/NAME. One that is not named belongs to models.
PUBLIC_LAYER = {"tensor.h": "base", "error.h": "base", "model.h": "engine"}

# Headers of others that belong to one folder. A pattern matches the whole name between <> or "".
FENCES = [
    (re.compile(r"(immintrin|x86intrin|cpuid|arm_neon)\.h"), "src/ops/cpu"),
    (re.compile(r"(cuda|cublas|cutlass|cute|flashinfer|cub).*"), "src/ops/cuda"),
    (re.compile(r"(mpi|nccl)\.h"), "src/parallel"),
    (re.compile(r"lorry_ffi\.h"), "src/text"),
]

# Where the compiler may be asked what it is compiling for.
CONDITIONALS = ("src/ops/cpu", "src/ops/cuda", "src/parallel")
ENVIRONMENT = ("src/cli",)

INCLUDE = re.compile(r'^\s*#\s*include\s*(["<])([^">]+)[">]')
CONDITIONAL = re.compile(r"^\s*#\s*(if|ifdef|ifndef|elif)\b")
GETENV = re.compile(r"\b(secure_)?getenv\s*\(")
SUFFIXES = {".h", ".cpp", ".cu", ".cuh"}


def closure(folder, edges=None):
    """The folders that `folder` may include, itself among them."""
    edges = BELOW if edges is None else edges
    seen, rest = set(), [folder]
    while rest:
        current = rest.pop()
        if current not in seen:
            seen.add(current)
            rest.extend(edges.get(current, []))
    return seen


def cmake_deps(text):
    """{folder: DEPS} of the lorry_library calls in a CMakeLists.txt."""
    text = re.sub(r"#.*", "", text)
    found = {}
    for call in re.finditer(r"\blorry_library\s*\(([^)]*)\)", text):
        words = call.group(1).split()
        deps, keyword = [], None
        for word in words[1:]:
            if word in ("DEPS", "EXTERNAL", "EXCLUDE"):
                keyword = word
            elif keyword == "DEPS":
                deps.append(word)
        found[words[0]] = deps
    return found


def layer_of(path):
    """The folder of src/ that a source file (relative to the root) belongs to; None if to none."""
    parts = pathlib.PurePosixPath(path).parts
    if parts[0] == "src" and len(parts) > 2:
        return parts[1]
    if parts[:2] == ("include", "lorry"):
        return PUBLIC_LAYER.get(parts[-1], "models")
    return None


def inside(path, folders):
    return any(path.startswith(folder + "/") for folder in folders)


def check_include(path, quote, name, allowed):
    """The complaint about one #include, or None. `allowed`: the folders that may be included."""
    for pattern, home in FENCES:
        if pattern.fullmatch(name):
            return None if inside(path, [home]) else f"<{name}> belongs below {home}"
    first, _, rest = name.partition("/")
    if first == "lorry" and rest:
        target = PUBLIC_LAYER.get(rest, "models")
        return None if target in allowed else f"lorry/{rest} is a header of {target}, which is not below"
    if quote == "<":
        return None
    if first not in BELOW or not rest:
        return f'"{name}" is not written from src/ ("folder/file.h")'
    if first not in allowed:
        return f'"{name}": {layer_of(path)} may not include {first}'
    return None


def check_source(path, text, allowed):
    """Complaints about one source file, as (line, words)."""
    for number, line in enumerate(text.splitlines(), 1):
        include = INCLUDE.match(line)
        if include:
            words = check_include(path, include.group(1), include.group(2), allowed)
            if words:
                yield number, words
        if CONDITIONAL.match(line) and not inside(path, CONDITIONALS):
            yield number, "conditional compilation outside " + ", ".join(CONDITIONALS)
        if GETENV.search(line.partition("//")[0]) and not inside(path, ENVIRONMENT):
            yield number, "the environment is read outside " + ", ".join(ENVIRONMENT)


DEFINITION = re.compile(r"^(?:class|struct|enum class)\s+(\w+)(?:\s+final)?\s*(?::[^;{]*)?\{", re.M)
NAMESPACE = re.compile(r"^namespace (\w+(?:::\w+)*)? ?\{", re.M)


def check_names(sources):
    """Types of one name in two headers: the linker takes one of them for both, without a word."""
    homes = {}
    for path, text in sources:
        for found in DEFINITION.finditer(text):
            spaces = tuple(NAMESPACE.findall(text[:found.start()]))
            if "" in spaces:
                continue
            home = homes.setdefault((spaces, found.group(1)), path)
            if home != path:
                yield f"{path}: {found.group(1)} is also defined in {home}"


def check_tree(root):
    """All complaints about the tree at `root`, as printable lines."""
    declared = {}
    for folder in sorted(p for p in (root / "src").glob("*") if p.is_dir()):
        name = folder.name
        if name not in BELOW:
            yield f"src/{name}: not a folder of the design; add it to tools/check_layers.py"
            continue
        lists = folder / "CMakeLists.txt"
        deps = cmake_deps(lists.read_text()).get(name) if lists.exists() else None
        if deps is None:
            yield f"src/{name}/CMakeLists.txt: no lorry_library({name} ...)"
            continue
        declared[name] = deps
        for dep in deps:
            if dep not in closure(name) - {name}:
                yield f"src/{name}/CMakeLists.txt: {name} may not stand on {dep}"

    sources = [p for top in ("src", "include") for p in (root / top).rglob("*")]
    headers = sorted(p for p in sources if p.suffix == ".h")
    yield from check_names((p.relative_to(root).as_posix(), p.read_text()) for p in headers)
    for source in sorted(p for p in sources if p.suffix in SUFFIXES):
        path = source.relative_to(root).as_posix()
        layer = layer_of(path)
        if layer is None:
            yield f"{path}: in no folder of src/"
        elif layer in declared:
            # Only what is both allowed and linked.
            allowed = closure(layer) & closure(layer, declared)
            for number, words in check_source(path, source.read_text(), allowed):
                yield f"{path}:{number}: {words}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", nargs="?", type=pathlib.Path,
                        default=pathlib.Path(__file__).resolve().parent.parent)
    complaints = list(check_tree(parser.parse_args().root))
    for line in complaints:
        print(line)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
