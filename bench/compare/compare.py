#!/usr/bin/env python3
"""Compares Lorry with another engine on this machine, in turn: A, B, A, B ..., medians of the rounds.

  compare.py serve   the servers over HTTP: N requests at once, with or without LoRA adapters
  compare.py bench   the engines' own benchmarks: `lorry bench`, llama-bench, llama-batched-bench

Machines differ and are noisy, so a figure alone says little: both sides run in the same minutes, only one of them
computes at a time, and the output says how much of the machine other processes took meanwhile. The ratio is that of the
rounds, first contender to each other one. `compare.py serve --help` and `compare.py bench --help` have examples.
Python 3.11 and nothing else; Linux.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import signal
import sys
import tempfile
import types

import dialects
import servers
import tools
from load import Work, asks, measure
from machine import Quiet, description
from report import Results

SERVE_HELP = """Starts servers of the same model, waits until each is healthy, and loads them in turn.

A round asks each server for the same N answers at once: distinct random token ids as prompt, greedy tokens, the end of
text ignored, streamed. Other ids in every round and every request: equal tokens choose equal experts, which flatters a
Mixture of Experts by 2 to 3 times. A server that was started here is stopped (SIGSTOP) while another one is measured.

  generated tok/s   of all requests, the time of the prompts included
  TTFT              from sending a request to its first token: median and 99th percentile over the N requests
  prefill tok/s     N=1: the prompt's length / TTFT
  decode tok/s      of a request: tokens after the first / time after the first

Examples
  compare.py serve \\
    --server 'lorry=lorry serve MODEL/hf --port {port} --lora-modules adapter-0=MODEL/peft/all-0' \\
    --server 'llama=llama-server -m MODEL/model.gguf --port {port} -np 16 -c 2048 -t 2' \\
    --concurrency 1 16 --adapters none
  compare.py serve --server 'mine=http://127.0.0.1:3000' --kind mine=lorry --server 'theirs=http://127.0.0.1:8000'

Kinds, guessed from the program's name (lorry, llama-server; else openai), and the fields that name adapter {i}:
""" + "\n".join(f"  {kind:<10} {dialects.WITH_ADAPTER[kind]:<42} none: {dialects.WITHOUT_ADAPTER[kind]}"
                for kind in dialects.KINDS)

BENCH_HELP = """Runs the benchmarks that the engines bring along, one process after another, several rounds.

  prefill 512    lorry bench --kind prefill   llama-bench -p 512
  decode B=1     lorry bench --kind decode    llama-bench -n 64
  decode B=16    lorry bench --batch 16       llama-batched-bench -npl 16

Example
  compare.py bench --lorry lorry=build/release/lorry \\
    --llama-bench 'bf16=llama-bench -m MODEL/model.gguf' \\
    --llama-batched-bench 'bf16=llama-batched-bench -m MODEL/model.gguf'"""


def add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=5, help="measured ones (default: %(default)s)")
    parser.add_argument("--out", type=pathlib.Path, metavar="FILE.json", help="all rounds of all figures")
    parser.add_argument("--quiet-cores", type=float, default=0.1, metavar="CORES",
                        help="a measurement counts when other processes use at most this (default: %(default)s)")
    parser.add_argument("--patience", type=float, default=0.0, metavar="SECONDS",
                        help="to wait for that and to measure again, in all; then any counts (default: 0)")


def parsed() -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", description=SERVE_HELP, formatter_class=raw, help="servers over HTTP")
    serve.add_argument("--server", action="append", type=tools.named, required=True, metavar="NAME=COMMAND",
                       help="a command line with {port}, or the URL of a server that runs; at least once")
    serve.add_argument("--kind", action="append", type=tools.named, default=[], metavar="NAME=KIND",
                       help="lorry, openai or llama.cpp, where the guess is wrong")
    serve.add_argument("--concurrency", type=int, nargs="+", default=[16], metavar="N", help="default: 16")
    serve.add_argument("--prompt-tokens", type=int, default=64, metavar="P", help="default: %(default)s")
    serve.add_argument("--new-tokens", type=int, default=64, metavar="G", help="default: %(default)s")
    serve.add_argument("--vocab", type=int, default=32000, help="ids are below this (default: %(default)s)")
    serve.add_argument("--adapters", nargs="+", choices=["none", "same", "distinct"], default=["none"],
                       help="none; all requests adapter 0; request j adapter j mod --n-adapters (default: none)")
    serve.add_argument("--n-adapters", type=int, default=16, metavar="N", help="default: %(default)s")
    serve.add_argument("--with-adapter", action="append", type=tools.named, default=[], metavar="NAME=JSON",
                       help="a server's fields of a request for adapter {i}, where the kind's do not fit")
    serve.add_argument("--without-adapter", action="append", type=tools.named, default=[], metavar="NAME=JSON",
                       help="the same for no adapter; an OpenAI server may want {\"model\": \"base\"}")
    serve.add_argument("--warmup", type=int, default=1, help="rounds before those (default: %(default)s)")
    serve.add_argument("--seed", default="0", help="of the token ids")
    serve.add_argument("--start-timeout", type=float, default=600, metavar="SECONDS", help="default: %(default)s")
    serve.add_argument("--request-timeout", type=float, default=600, metavar="SECONDS", help="default: %(default)s")
    serve.add_argument("--logs", type=pathlib.Path, metavar="FOLDER", help="of the servers (default: a temporary one)")
    add_common(serve)
    bench = commands.add_parser("bench", description=BENCH_HELP, formatter_class=raw, help="the engines' own benchmarks")
    tools.add_arguments(bench)
    add_common(bench)
    return parser.parse_args()


def templates_of(args: argparse.Namespace, server: servers.Server) -> tuple[str, str]:
    """JSON of the fields with an adapter and without one."""
    with_one = dict(args.with_adapter).get(server.name, dialects.WITH_ADAPTER[server.kind])
    without = dict(args.without_adapter).get(server.name, dialects.WITHOUT_ADAPTER[server.kind])
    for text in (with_one.replace("{i}", "0"), without):
        try:
            json.loads(text)
        except json.JSONDecodeError as error:
            raise SystemExit(f"{server.name}: fields of a request: {error}: {text}") from None
    return with_one, without


def works(args: argparse.Namespace) -> list[Work]:
    return [Work(n, args.prompt_tokens, args.new_tokens, args.vocab, adapters, args.n_adapters)
            for n in args.concurrency for adapters in args.adapters
            if n > 1 or adapters != "distinct" or "same" not in args.adapters]


def serve_rounds(args: argparse.Namespace, quiet: Quiet, running: list[servers.Server], results: Results) -> None:
    templates = {server.name: templates_of(args, server) for server in running}
    pids = [pid for server in running for pid in server.pids]

    def round_of(server: servers.Server, work: Work, seed: str) -> dict[str, float]:
        all_asks = asks(work, seed, templates[server.name])
        server.go_on()
        figures = measure(server, work, all_asks, args.request_timeout)
        server.pause()
        return figures

    for work in works(args):  # a server's first requests are its slowest
        for server in running:
            for number in range(args.warmup):
                round_of(server, work, f"{args.seed}/warm-up {number}")
    for number in range(args.rounds):
        for work in works(args):
            for server in running:
                seed = f"{args.seed}/{number}"
                figures, cores = quiet.measured(
                    pids, lambda attempt: round_of(server, work, f"{seed}/{attempt}"))
                results.add(work.label, server.name, figures)
                results.others.append(cores)
                print(f"round {number + 1} of {args.rounds}: {work.label}: {server.name} "
                      f"{figures['generated tok/s']:.1f} tok/s, others {cores:.2f} cores", flush=True)


def serve(args: argparse.Namespace, quiet: Quiet, results: Results) -> None:
    results.commands = dict(args.server)
    if len(results.commands) != len(args.server):
        raise SystemExit("--server: two servers have the same name")
    with tempfile.TemporaryDirectory() as temporary:
        logs = args.logs or pathlib.Path(temporary)
        logs.mkdir(parents=True, exist_ok=True)
        with servers.running(results.commands, dict(args.kind), logs, args.start_timeout) as running:
            serve_rounds(args, quiet, running, results)


def leave(number: int, _: types.FrameType | None) -> None:
    sys.exit(128 + number)  # servers are stopped on the way out


def main() -> None:
    args = parsed()
    signal.signal(signal.SIGTERM, leave)
    machine = description()
    quiet = Quiet(args.quiet_cores, args.patience)
    results = Results()
    try:
        (serve if args.command == "serve" else tools.run)(args, quiet, results)
    finally:  # also what there is when it ends early
        if results.rounds:
            results.write(args.out, machine)


if __name__ == "__main__":
    main()
