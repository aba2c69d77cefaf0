#!/usr/bin/env python3
"""Builds the fuzzers and runs each, beginning with the kept inputs in fuzz/corpus/NAME.

    fuzz/run.py [--seconds 60] [NAME...]     NAME: http, request, ... (all)
    fuzz/run.py --minutes 60 [NAME...]       for long: minutes of processor time, in turns of five

Exits 1 on any finding; its input is then in build/fuzz/findings. New inputs are thrown away after
--seconds. With --minutes they and the time spent stay in build/fuzz/long, so that such a run may be
stopped and started again. --keep makes fuzz/corpus/NAME the smallest set of its own and the new
inputs that reaches as much.
"""
import argparse
import concurrent.futures
import json
import os
import pathlib
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import threading

ROOT = pathlib.Path(__file__).resolve().parent.parent
BUILD = ROOT / "build/fuzz"
FINDINGS = BUILD / "findings"
LONG = BUILD / "long"
TURN_S = 300
# Some write a file for each input: on a disk they would wait for it most of the time.
MEMORY = pathlib.Path("/dev/shm")
ENV = {
    **os.environ,
    **({"TMPDIR": str(MEMORY)} if "TMPDIR" not in os.environ and os.access(MEMORY, os.W_OK) else {}),
    "PATH": f"{pathlib.Path.home()}/.cargo/bin:{os.environ['PATH']}",
    # The Rust library reports a panic on stderr and returns an error: only noise here.
    "ASAN_OPTIONS": "strict_string_checks=1:detect_stack_use_after_return=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}


def build():
    if shutil.which("clang++-19") is None:
        raise SystemExit("fuzz/run.py needs clang-19 (tools/setup.sh installs it)")
    if not (BUILD / "build.ninja").exists():
        subprocess.run(["cmake", "--preset", "fuzz"], cwd=ROOT, env=ENV, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", "--preset", "fuzz", "--", "--quiet"], cwd=ROOT, env=ENV, check=True)
    FINDINGS.mkdir(exist_ok=True)
    LONG.mkdir(exist_ok=True)
    # A core file of gigabytes helps nobody: the input is what is kept.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def corpus(name):
    return ROOT / "fuzz/corpus" / name


def command(name, *options):
    words = [str(BUILD / f"fuzz/{name}_fuzzer"), "-timeout=20", "-rss_limit_mb=3072", "-max_len=16384",
             f"-artifact_prefix={FINDINGS}/{name}-", *options]
    dictionary = ROOT / f"fuzz/dictionaries/{name}.dict"
    return words + ([f"-dict={dictionary}"] if dictionary.exists() else [])


class Ledger:
    """What has been spent on each fuzzer and what it has reached; in a file, where there is one."""

    def __init__(self, path=None):
        self.path, self.lock = path, threading.Lock()
        self.rows = json.loads(path.read_text()) if path and path.exists() else {}

    def minutes(self, name):
        return self.rows.get(name, {}).get("cpu_s", 0.0) / 60

    def add(self, name, cpu_s, log):
        def last(pattern):
            found = re.findall(pattern, log)
            return int(found[-1]) if found else 0

        with self.lock:
            row = self.rows.setdefault(name, {"cpu_s": 0.0, "runs": 0, "coverage": 0, "rss_mb": 0})
            row["cpu_s"] += cpu_s
            row["runs"] += last(r"number_of_executed_units: +(\d+)")
            row["coverage"] = max(row["coverage"], last(r"cov: (\d+)"))
            row["rss_mb"] = max(row["rss_mb"], last(r"peak_rss_mb: +(\d+)"))
            if self.path:
                self.path.write_text(json.dumps(self.rows, indent=1))

    def line(self, name):
        row = self.rows[name]
        return (f"fuzz {name:<12} {row['runs']:>11} executions in {row['cpu_s'] / 60:.1f} min, "
                f"coverage {row['coverage']}, {row['rss_mb']} MB")


def run(name, seconds, new, ledger):
    """One run of at most `seconds`, with new inputs to the folder `new`; whether it found nothing."""
    log_path = FINDINGS / f"{name}.log"
    words = command(name, f"-max_total_time={int(seconds)}", "-print_final_stats=1", str(new), str(corpus(name)))
    corpus(name).mkdir(exist_ok=True)
    with open(log_path, "w") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log, env=ENV)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    text = log_path.read_text(errors="replace")
    ledger.add(name, usage.ru_utime + usage.ru_stime, text)
    if process.returncode == 0:
        print(ledger.line(name), flush=True)
        return True
    said = [line for line in text.splitlines() if not line.startswith("#")]
    print(f"fuzz {name}: FAILED\n" + "\n".join(said[-60:]), file=sys.stderr, flush=True)
    return False


def keep(name, new):
    """Merges the inputs of `new` into the kept ones."""
    with tempfile.TemporaryDirectory() as small:
        done = subprocess.run(command(name, "-merge=1", small, str(corpus(name)), str(new)), env=ENV,
                              capture_output=True)
        if done.returncode != 0:
            raise SystemExit(f"fuzz {name}: the merge failed\n{done.stderr[-2000:].decode(errors='replace')}")
        shutil.rmtree(corpus(name))
        shutil.copytree(small, corpus(name))
        corpus(name).chmod(0o755)


def run_shortly(flags, pool):
    def one(name):
        with tempfile.TemporaryDirectory() as new:
            clean = run(name, flags.seconds, new, Ledger())
            if clean and flags.keep:
                keep(name, new)
            return clean

    return all(list(pool.map(one, flags.names)))


def run_long(flags, pool):
    ledger = Ledger(LONG / "spent.json")

    def turn(name):
        (LONG / name).mkdir(exist_ok=True)
        return run(name, TURN_S, LONG / name, ledger)

    clean = True
    while clean and (left := [n for n in flags.names if ledger.minutes(n) < flags.minutes]):
        clean = all(list(pool.map(turn, left)))
    for name in flags.names if clean and flags.keep else []:
        keep(name, LONG / name)
    return clean


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--seconds", type=float, default=60, help="of each (default 60)")
    parser.add_argument("--minutes", type=float, help="of processor time of each, all calls together")
    parser.add_argument("--jobs", type=int, default=2, help="fuzzers at a time (default 2)")
    parser.add_argument("--keep", action="store_true", help="add what reaches more to fuzz/corpus")
    flags = parser.parse_args()
    known = sorted(p.name.removesuffix("_fuzzer.cpp") for p in (ROOT / "fuzz").glob("*_fuzzer.cpp"))
    if unknown := set(flags.names) - set(known):
        raise SystemExit(f"there is no fuzzer {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    flags.names = flags.names or known
    build()
    with concurrent.futures.ThreadPoolExecutor(flags.jobs) as pool:
        clean = run_long(flags, pool) if flags.minutes is not None else run_shortly(flags, pool)
    if not clean:
        sys.exit(1)


if __name__ == "__main__":
    main()
