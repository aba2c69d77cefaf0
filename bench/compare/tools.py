"""The benchmarks that the engines bring along, run in turn: `lorry bench`, llama-bench, llama-batched-bench.

Each is a process of its own, so that one model at a time is in memory; its loading is not measured.
"""

from __future__ import annotations

import argparse
import functools
import json
import pathlib
import shlex
import subprocess
from collections.abc import Callable

from machine import Quiet
from report import Results

Figures = dict[str, dict[str, float]]  # what was measured -> figure -> value
Tool = Callable[[], Figures]

EQUAL_TOKENS = ("{}: llama-batched-bench takes random tokens where its source says get_token_rand(); builds that feed equal "
                "tokens choose equal experts in all sequences and show 2 to 3 times too much. The figure over HTTP, with "
                "generated tokens, is the one to trust.")


def output_of(words: list[str]) -> str:
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{shlex.join(words)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout


def prefill_label(args: argparse.Namespace) -> str:
    return f"prefill {args.prompt}"


def decode_label(batch: int) -> str:
    return f"decode B={batch}"


def lorry_bench(args: argparse.Namespace, command: str) -> Figures:
    """`command`: the binary, with flags of `lorry bench` as far as they are not set here."""
    binary, *flags = shlex.split(command)
    base = [binary, "bench", "--json", "--threads", str(args.threads), "--tokens", str(args.prompt), "--context",
            str(args.context), "--reps", str(args.reps), *flags]
    figures: Figures = {}
    for case in (["--kind", "prefill", "--batch", "1"], ["--kind", "decode", "--batch", "1", *map(str, args.batch)]):
        for result in json.loads(output_of(base + case))["results"]:
            what = prefill_label(args) if result["kind"] == "prefill" else decode_label(result["batch"])
            figures[what] = {"tok/s": result["tokens_per_s"]}
            if result["of_roofline"] is not None:
                figures[what]["of the roofline"] = result["of_roofline"]
    return figures


def llama_bench(args: argparse.Namespace, command: str) -> Figures:
    """`command`: llama-bench with -m MODEL.gguf."""
    words = [*shlex.split(command), "-p", str(args.prompt), "-n", str(args.new), "-t", str(args.threads), "-r",
             str(args.reps), "-o", "json"]
    figures: Figures = {}
    for test in json.loads(output_of(words)):
        what = prefill_label(args) if test["n_prompt"] else decode_label(1)
        figures[what] = {"tok/s": test["avg_ts"]}
    return figures


def llama_batched_bench(args: argparse.Namespace, command: str) -> Figures:
    """`command`: llama-batched-bench with -m MODEL.gguf."""
    room = max(args.batch) * (args.context + args.new)
    words = [*shlex.split(command), "-c", str(room), "-npp", str(args.context), "-ntg", str(args.new), "-npl",
             ",".join(map(str, args.batch)), "-t", str(args.threads), "--output-format", "jsonl"]
    figures: Figures = {}
    for line in output_of(words).splitlines():
        if line.startswith("{"):
            test = json.loads(line)
            figures[decode_label(test["pl"])] = {"tok/s": test["speed_tg"]}
    return figures


def named(text: str) -> tuple[str, str]:
    name, equals, command = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"expected NAME=COMMAND, found {text}")
    return name, command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--lorry", action="append", type=named, default=[], metavar="NAME=BINARY",
                        help="a lorry binary, perhaps with flags of `lorry bench`: 'lorry=build/release/lorry --isa avx512'")
    parser.add_argument("--llama-bench", action="append", type=named, default=[], metavar="NAME=COMMAND",
                        help="as 'q8_0=llama-bench -m model-q8_0.gguf'; several allowed")
    parser.add_argument("--llama-batched-bench", action="append", type=named, default=[], metavar="NAME=COMMAND",
                        help="as 'q8_0=llama-batched-bench -m model-q8_0.gguf'; the same NAME is one row of the table")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prefill (default: %(default)s)")
    parser.add_argument("--new", type=int, default=64, help="tokens that llama.cpp decodes (default: %(default)s)")
    parser.add_argument("--context", type=int, default=64, help="tokens before a batched decode (default: %(default)s)")
    parser.add_argument("--batch", type=int, nargs="+", default=[16], help="batched decodes (default: 16)")
    parser.add_argument("--threads", type=int, default=2, help="of every tool (default: %(default)s)")
    parser.add_argument("--reps", type=int, default=3, help="steps or runs inside a tool, a round (default: %(default)s)")


def contenders(args: argparse.Namespace) -> list[tuple[str, str, Tool]]:
    """(name, command line, what runs it once), in the order of a round."""
    found: list[tuple[str, str, Tool]] = []
    for tool, commands in ((lorry_bench, args.lorry), (llama_bench, args.llama_bench),
                           (llama_batched_bench, args.llama_batched_bench)):
        for name, command in commands:
            found.append((name, command, functools.partial(tool, args, command)))
    return found


def run_once(tool: Tool, _: int) -> Figures:
    return tool()


def run(args: argparse.Namespace, quiet: Quiet, results: Results) -> None:
    """Every tool once a round, `--rounds` times."""
    found = contenders(args)
    if not found:
        raise SystemExit("nothing to run: give --lorry, --llama-bench or --llama-batched-bench")
    for name, command, _ in found:
        before = results.commands.get(name)
        results.commands[name] = f"{before}; {command}" if before else command
    results.notes = [EQUAL_TOKENS.format(name) for name, _ in args.llama_batched_bench]
    for number in range(args.rounds):
        for name, command, tool in found:
            found_figures, cores = quiet.measured([], functools.partial(run_once, tool))
            for what, figures in found_figures.items():
                results.add(what, name, figures)
            results.others.append(cores)
            program = pathlib.PurePath(shlex.split(command)[0]).name
            print(f"round {number + 1} of {args.rounds}: {name} ({program}), others {cores:.2f} cores", flush=True)
