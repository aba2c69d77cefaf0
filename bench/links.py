#!/usr/bin/env python3
"""Steps of a model over links of a given speed and delay, against the formula of docs/scaling.md.

Hosts are network namespaces; between them this program carries their packets, as late and as slowly as a
link would (the kernels of small machines often have no netem). Needs root, OpenMPI and a build:

  bench/links.py sums  --link 1000:0.5 --ranks 2 4        what a sum takes (bench_comm)
  bench/links.py steps --link 1000:0.5 --ranks 2 --out steps.json    what a step takes (lorry bench)
  bench/links.py table steps.json                         measured against computed

A link is MBIT/S:MILLISECONDS, one way; `shared` is shared memory on one host, which `table` needs of the
same ranks: it stands for the time of computing.
"""

import argparse
import ctypes
import fcntl
import heapq
import json
import os
import pathlib
import re
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
HOSTS = ROOT / "tests" / "ranks" / "hosts.sh"
NET = "10.97.0."
MTU = 65000
CLONE_NEWNET = 0x40000000
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000

# Of the formula: sums are cut at 1 MiB, and from 32 KiB among more than two ranks made in shares
# (src/parallel/mpi.cpp).
PART, SHARES = 1 << 20, 32 << 10
OWN_LATENCY = 0.3e-3  # of a message beside the link: TCP, OpenMPI, this program, and being awake for it


def exchange_seconds(sent, delay, rate):
    """Of one exchange of messages: `sent` bytes leave or reach a host."""
    return delay + OWN_LATENCY + sent / rate


def sum_seconds(size, ranks, delay, rate):
    seconds = 0
    while size > 0:
        part = min(size, PART)
        if ranks > 2 and part >= SHARES:
            seconds += 2 * exchange_seconds((ranks - 1) * part / ranks, delay, rate)
        else:
            seconds += exchange_seconds((ranks - 1) * part, delay, rate)
        size -= part
    return seconds


def step_seconds(computing, shape, rows, logits, ranks, delay, rate):
    sums = 2 * shape["layers"] + 1
    gathered = 4 * shape["vocab"] * (ranks - 1) / ranks * logits
    plan = exchange_seconds(0, delay, rate)  # of the benchmark: the word to begin
    return (computing + plan + sums * sum_seconds(4 * shape["dim"] * rows, ranks, delay, rate) +
            exchange_seconds(gathered, delay, rate))


class Link:
    """How one host's packets leave and arrive: one after the other, at the link's rate."""

    def __init__(self, descriptor):
        self.descriptor = descriptor
        self.sends_until = 0.0
        self.receives_until = 0.0


def open_tun(host):
    """The descriptor of eth0 in the namespace of host number `host`."""
    libc = ctypes.CDLL(None, use_errno=True)
    own = os.open("/proc/self/ns/net", os.O_RDONLY)
    other = os.open(f"/var/run/netns/lorry-h{host}", os.O_RDONLY)
    if libc.setns(other, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH", b"eth0", IFF_TUN | IFF_NO_PI))
    libc.setns(own, CLONE_NEWNET)
    os.close(own)
    os.close(other)
    return tun


def carry(tuns, delay, rate):
    """Carries packets for ever: each leaves its host when those before it have, takes `delay`, and arrives
    when those before it have."""
    links = {i + 1: Link(t) for i, t in enumerate(tuns)}
    of = {link.descriptor: link for link in links.values()}
    waiting, count = [], 0
    while True:
        now = time.perf_counter()
        while waiting and waiting[0][0] <= now:
            _, _, to, packet = heapq.heappop(waiting)
            os.write(to.descriptor, packet)
        timeout = max(0.0, waiting[0][0] - time.perf_counter()) if waiting else None
        for ready in select.select(list(of), [], [], timeout)[0]:
            while True:
                try:
                    packet = os.read(ready, 65536)
                except BlockingIOError:
                    break
                to = links.get(packet[19]) if packet[0] >> 4 == 4 else None
                if to is None:
                    continue
                now, takes = time.perf_counter(), len(packet) / rate
                link = of[ready]
                link.sends_until = max(link.sends_until, now) + takes
                arrives = max(link.sends_until + delay, to.receives_until + takes)
                to.receives_until = arrives
                count += 1
                heapq.heappush(waiting, (arrives, count, to, packet))


class Hosts:
    """`n` namespaces that are joined by a link, while this is entered."""

    def __init__(self, n, mbit, milliseconds):
        self.n, self.rate, self.delay = n, mbit * 1e6 / 8, milliseconds * 1e-3

    def __enter__(self):
        subprocess.run([HOSTS, "down"], check=True)
        tuns = []
        for i in range(1, self.n + 1):
            name = f"lorry-h{i}"
            subprocess.run(["ip", "netns", "add", name], check=True)
            tuns.append(open_tun(i))
            for words in (f"addr add {NET}{i}/24 dev eth0", f"link set eth0 mtu {MTU} txqueuelen 10000 up",
                          "link set lo up"):
                subprocess.run(["ip", "-n", name, *words.split()], check=True)
        self.carrier = os.fork()
        if self.carrier == 0:
            ctypes.CDLL(None).prctl(29, 1, 0, 0, 0)  # PR_SET_TIMERSLACK: wake when asked to
            os.nice(-10)
            carry(tuns, self.delay, self.rate)
        for t in tuns:
            os.close(t)
        return self

    def __exit__(self, *_):
        os.kill(self.carrier, signal.SIGKILL)
        os.waitpid(self.carrier, 0)
        subprocess.run([HOSTS, "down"], check=True)


def mpirun(n, command, settings):
    """What `command` prints on n hosts. settings: of OpenMPI, NAME=VALUE."""
    with tempfile.NamedTemporaryFile("w", suffix=".sh", delete=False) as agent:
        agent.write(f'#!/usr/bin/env bash\nexec "{HOSTS}" ssh "$@"\n')
    os.chmod(agent.name, 0o755)
    hosts = ",".join(f"{NET}{i}" for i in range(1, n + 1))
    start = (f"mpirun --allow-run-as-root --mca plm_rsh_agent {agent.name} --mca btl tcp,self "
             "--mca btl_tcp_if_include eth0 --mca oob_tcp_if_include eth0 --bind-to none "
             f"--host {hosts} -np {n} " +
             "".join(f"--mca {s.replace('=', ' ')} " for s in settings))
    try:
        return subprocess.run([HOSTS, "ssh", f"{NET}1", start + " ".join(map(str, command))], check=True,
                              stdout=subprocess.PIPE, text=True).stdout
    finally:
        os.unlink(agent.name)


def parse_link(text):
    if text == "shared":
        return None
    mbit, _, ms = text.partition(":")
    return float(mbit), float(ms)


def run_sums(args):
    for ranks in args.ranks:
        for link in args.link:
            mbit, ms = parse_link(link)
            with Hosts(ranks, mbit, ms) as hosts:
                text = mpirun(ranks, [args.build / "bench" / "bench_comm", "--kib", *args.kib], args.mca)
            print(f"{ranks} hosts, {mbit:g} Mbit/s, {ms:g} ms: microseconds a sum")
            print(f"{'KiB':>8} {'measured':>10} {'computed':>10}")
            for line in text.splitlines():
                found = re.fullmatch(r" *(\d+) +[\d.]+ +([\d.]+) +[\d.]+ +[\d.]+%", line)
                if found:
                    kib, measured = int(found[1]), float(found[2])
                    computed = 1e6 * sum_seconds(kib << 10, ranks, hosts.delay, hosts.rate)
                    print(f"{kib:8} {measured:10.0f} {computed:10.0f}", flush=True)


def run_steps(args):
    for ranks in args.ranks:
        for link in args.link:
            steps = {}
            for kind in args.kind:
                command = [args.build / "lorry", "bench", "--json", "--kind", kind, "--reps", args.reps,
                           "--threads", 1]
                if kind == "decode":
                    command += ["--batch", *args.batch]
                if link == "shared":
                    command += ["--num-shard", ranks]
                    text = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE,
                                          text=True).stdout
                else:
                    with Hosts(ranks, *parse_link(link)):
                        text = mpirun(ranks, command, args.mca)
                for r in json.loads(text.strip().splitlines()[-1])["results"]:
                    rows = args.prefill if kind == "prefill" else r["batch"]
                    steps[f"{kind} {rows}"] = r["seconds"]
            with open(args.out, "a", encoding="utf-8") as out:
                out.write(json.dumps({"ranks": ranks, "link": link, "steps": steps}) + "\n")
            print(ranks, link, {k: round(1000 * v, 1) for k, v in steps.items()}, flush=True)


def print_table(args):
    # synthetic:mini-mixtral (src/models/synthetic.cpp)
    shape = {"layers": 16, "dim": 2048, "vocab": 32000}
    with open(args.file, encoding="utf-8") as lines:
        runs = [json.loads(line) for line in lines]
    shared = {}
    for r in runs:
        if r["link"] == "shared":
            shared.setdefault(r["ranks"], {}).update(r["steps"])
    print("| ranks | link | step | shared memory ms | measured ms | computed ms | off |\n|" + "---|" * 7)
    for r in runs:
        if r["link"] == "shared":
            continue
        mbit, ms = parse_link(r["link"])
        for step, seconds in r["steps"].items():
            kind, rows = step.split()
            computing = shared[r["ranks"]][step]
            logits = 1 if kind == "prefill" else int(rows)
            computed = step_seconds(computing, shape, int(rows), logits, r["ranks"], ms * 1e-3, mbit * 1e6 / 8)
            print(f"| {r['ranks']} | {mbit:g} Mbit/s, {ms:g} ms | {step} | {1e3 * computing:.0f} | "
                  f"{1e3 * seconds:.0f} | {1e3 * computed:.0f} | {100 * (computed / seconds - 1):+.0f} % |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, run in (("sums", run_sums), ("steps", run_steps)):
        p = commands.add_parser(name)
        p.set_defaults(run=run)
        p.add_argument("--build", type=pathlib.Path, default=ROOT / "build" / "release")
        p.add_argument("--link", nargs="+", required=True)
        p.add_argument("--ranks", nargs="+", type=int, default=[2])
        p.add_argument("--kib", nargs="+", type=int, default=[8, 32, 128, 512, 2048])
        p.add_argument("--batch", nargs="+", type=int, default=[1, 16, 64])
        p.add_argument("--kind", nargs="+", default=["decode", "prefill"])
        p.add_argument("--reps", type=int, default=3)
        p.add_argument("--mca", nargs="+", default=[], help="settings of OpenMPI, NAME=VALUE")
        p.add_argument("--out", default="steps.json")
        p.set_defaults(prefill=512)
    p = commands.add_parser("table")
    p.set_defaults(run=print_table)
    p.add_argument("file")
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    sys.exit(main())
