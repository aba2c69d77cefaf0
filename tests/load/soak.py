#!/usr/bin/env python3
"""Mixed traffic for a long time: adapters, streams, clients that leave, adapters that come and go, and
all kinds of bad input. Demands: no crash, good answers stay what they were, memory and descriptors do
not grow, latencies do not drift.

    tests/load/soak.py [--minutes 30] [--lorry build/release/lorry]
"""

import argparse
import asyncio
import collections
import json
import pathlib
import random
import statistics
import sys
import tempfile
import time

from wire import ROOT, Connection, Server, as_turn, ask, connected, descriptors, message, percentile, port_of, resident, story

sys.path.insert(0, str(ROOT / "tests" / "bad_inputs"))
import rows  # noqa: E402

ADAPTERS = [None, "bullets", "french", "json", "pirate", "poem", "summary"]
SCHEMA = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 20}}, "required": ["name"]}
CLIENTS = 12
EVERY = 10.0  # seconds between two looks at the process
REST = 300.0  # seconds between two rests, in which nothing is asked and memory is compared
SETTLE = 12.0  # seconds of a rest: the server gives back what its heaps do not use every 10


class Traffic:
    def __init__(self, port, seed):
        self.port, self.random = port, random.Random(seed)
        self.known = {}  # question -> its answer
        self.counts = collections.Counter()
        self.latencies = []  # (when it ended, seconds) of equal requests
        self.wrong = []
        self.may_ask = asyncio.Event()
        self.may_ask.set()
        self.asking = 0

    def expect(self, condition, text):
        if not condition:
            self.wrong.append(text)

    async def good(self):
        """A question that was perhaps asked before: the answer must be the same, whole or in a stream."""
        adapter, number = self.random.choice(ADAPTERS), self.random.randrange(20)
        parameters = {"max_new_tokens": 40, "adapter_id": adapter or "__base_model__"}
        body = {"inputs": as_turn(story(number)), "parameters": parameters}
        if self.random.random() < 0.5:
            reply = await ask(self.port, "POST", "/generate", body)
            text = reply.json().get("generated_text")
        else:
            reply = await ask(self.port, "POST", "/generate_stream", body)
            text = json.loads(reply.events()[-1])["generated_text"]
        self.expect(reply.status == 200, f"good request: {reply.status} {reply.body[:200]}")
        self.expect(self.known.setdefault((adapter, number), text) == text, f"another answer: {adapter} {number}")

    async def sampled(self):
        body = {"model": self.random.choice(ADAPTERS) or "", "messages": [{"role": "user", "content": story(
            self.random.randrange(800))}], "temperature": 0.9, "n": 2, "max_tokens": 30, "stream": self.random.random() < 0.5,
            "logprobs": True, "top_logprobs": 3}
        if self.random.random() < 0.3:
            body["response_format"] = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
        reply = await ask(self.port, "POST", "/v1/chat/completions", body)
        self.expect(reply.status == 200, f"chat: {reply.status} {reply.body[:200]}")

    async def leave(self):
        """Goes away: at once, in the queue or in the prefill; or in mid-stream."""
        body = {"inputs": as_turn(story(self.random.randrange(800)) * self.random.choice([1, 10])),
                "parameters": {"max_new_tokens": 200, "ignore_eos_token": True}}
        connection = await Connection.open(self.port)
        await connection.send(message("POST", "/generate_stream", body))
        if self.random.random() < 0.5:
            await connection.head()
            for _ in range(self.random.randrange(5)):
                await connection.chunk()
        connection.reset() if self.random.random() < 0.5 else connection.close()

    async def bad_body(self):
        row = self.random.choice(rows.JSON)
        async with connected(self.port) as connection:
            await connection.send((f"POST {row.path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                                   f"Content-Length: {len(row.body)}\r\n\r\n").encode() + row.body)
            reply = await connection.reply()
        self.expect(reply.status in row.statuses, f"{row.row}: {reply.status} {reply.body[:200]}")

    async def bad_bytes(self):
        row = self.random.choice(rows.RAW)
        async with connected(self.port) as connection:
            try:
                await connection.send(row.data)
            except OSError:
                pass  # refused before all of it was sent
            status, _ = await connection.head()
        self.expect(status == row.status, f"{row.row}: {status} {row.data[:60]}")

    async def look(self):
        for path in ("/metrics", "/health", "/v1/adapters", "/v1/models", "/info"):
            reply = await ask(self.port, "GET", path)
            self.expect(reply.status == 200, f"{path}: {reply.status}")
        reply = await ask(self.port, "POST", "/tokenize", {"inputs": story(self.random.randrange(800))})
        self.expect(reply.status == 200, f"/tokenize: {reply.status}")

    async def adapters(self):
        """Names that come and go, and those that are none."""
        name = f"extra-{self.random.randrange(50)}"
        reply = await ask(self.port, "POST", "/v1/load_lora_adapter", {
            "lora_name": name, "lora_path": self.random.choice(ADAPTERS[1:]), "load_inplace": True})
        self.expect(reply.status == 200, f"load: {reply.status} {reply.body[:200]}")
        reply = await ask(self.port, "POST", "/generate", {"inputs": "Hi", "parameters": {
            "max_new_tokens": 5, "adapter_id": name}})
        # Another client may have unloaded it.
        self.expect(reply.status in (200, 424), f"extra: {reply.status} {reply.body[:200]}")
        await ask(self.port, "POST", "/v1/unload_lora_adapter", {"lora_name": name})
        reply = await ask(self.port, "POST", "/generate", {"inputs": "Hi", "parameters": {
            "adapter_id": f"none/{self.random.randrange(10**6)}"}})
        self.expect(reply.status == 424, f"no adapter: {reply.status} {reply.body[:200]}")

    async def client(self, end):
        kinds = [self.good] * 6 + [self.sampled] * 2 + [self.leave] * 4 + [self.bad_body] * 4 + [self.bad_bytes] * 2 + [
            self.look, self.adapters]
        while time.monotonic() < end:
            await self.may_ask.wait()
            kind = self.random.choice(kinds)
            self.asking += 1
            try:
                await asyncio.wait_for(kind(), 120)
            except (OSError, EOFError, asyncio.TimeoutError) as error:
                self.expect(kind == self.leave, f"{kind.__name__}: {error!r}")
            self.asking -= 1
            self.counts[kind.__name__] += 1

    async def probe(self, end):
        """Equal requests, whose times can be compared."""
        body = {"inputs": as_turn(story(1)), "parameters": {"max_new_tokens": 20}}
        while time.monotonic() < end:
            await self.may_ask.wait()
            begin = time.monotonic()
            self.asking += 1
            reply = await ask(self.port, "POST", "/generate", body)
            self.asking -= 1
            self.expect(reply.status == 200, f"probe: {reply.status}")
            self.latencies.append((begin, time.monotonic() - begin))
            await asyncio.sleep(0.2)


async def watch(server, traffic, begin, end, seen):
    while time.monotonic() < end and server.running():
        await asyncio.sleep(EVERY)
        now = time.monotonic()
        seen.append((now - begin, resident(server)))
        recent = [s for t, s in traffic.latencies if t > now - EVERY] or [0]
        print(f"{now - begin:6.0f} s  {seen[-1][1] / 1e6:8.2f} MB  {descriptors(server):4d} descriptors  "
              f"{sum(traffic.counts.values()):8d} requests  probe p50 {1e3 * percentile(recent, 50):.0f} ms  "
              f"{len(traffic.wrong)} wrong", flush=True)


async def rest(server, traffic, at_rest):
    """Memory and descriptors while nothing runs: what requests of the moment need would hide what is lost."""
    traffic.may_ask.clear()
    while traffic.asking:
        await asyncio.sleep(0.1)
    await asyncio.sleep(SETTLE)
    memory, left = resident(server), descriptors(server)
    print(f"  rest: {memory / 1e6:8.2f} MB  {left:4d} descriptors", flush=True)
    traffic.expect(left <= at_rest + 2, f"descriptors: {at_rest} before, {left} in a rest")
    traffic.may_ask.set()
    return memory


async def rests(server, traffic, begin, end, at_rest):
    memory = []
    while begin + REST * (len(memory) + 1) <= end:
        await asyncio.sleep(begin + REST * (len(memory) + 1) - time.monotonic())
        memory.append(await rest(server, traffic, at_rest))
    return memory


async def soak(server, minutes, seed):
    port = port_of(server)
    begin = time.monotonic()
    end = begin + minutes * 60
    traffic = Traffic(port, seed)
    at_rest = descriptors(server)
    seen = []
    memory, *_ = await asyncio.gather(rests(server, traffic, begin, end, at_rest), watch(server, traffic, begin, end, seen),
                                      traffic.probe(end), *[traffic.client(end) for _ in range(CLIENTS)])
    failed = list(traffic.wrong)
    for _ in range(200):
        if server.metric("vllm:num_requests_running") == 0 and descriptors(server) <= at_rest + 2:
            break
        await asyncio.sleep(0.1)
    left = descriptors(server)
    print(f"traffic: {dict(traffic.counts)}")
    print(f"descriptors: {at_rest} before, {left} after")
    if left > at_rest + 2:
        failed.append(f"descriptors: {at_rest} before, {left} after")
    if server.metric("vllm:num_requests_running") or server.metric("vllm:kv_cache_usage_perc"):
        failed.append("requests or KV blocks are left")
    for first in range(0, int(minutes * 60), int(REST)):
        busy = [m / 1e6 for t, m in seen if first <= t < first + REST]
        if busy:
            print(f"memory of the minutes from {first // 60}: median {statistics.median(busy):.1f} MB, {min(busy):.1f} to {max(busy):.1f}")
    if len(memory) > 1:
        grown = memory[-1] / memory[0] - 1
        print(f"memory at rest: {100 * grown:+.2f} % from minute {REST / 60:.0f} to the end")
        if grown > 0.01:
            failed.append(f"memory at rest grew by {100 * grown:.2f} %")
    middle = begin + (end - begin) / 2
    halves = [[s for t, s in traffic.latencies if (t < middle) == first] for first in (True, False)]
    p99 = [1e3 * percentile(half, 99) for half in halves]
    print(f"p99 of equal requests: {p99[0]:.0f} ms in the first half, {p99[1]:.0f} ms in the second")
    return failed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--lorry", default=str(ROOT / "build/release/lorry"))
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = Server(options.lorry, ["demo", "--adapter-root", str(ROOT / "demo/mixtral/adapters"),
                                        "--max-concurrent-requests", "256", "--disable-log-requests",
                                        # A cache of keys and values that is full, and so touched, within minutes.
                                        "--max-batch-total-tokens", "65536"],
                        pathlib.Path(folder))
        try:
            failed = asyncio.run(soak(server, options.minutes, options.seed))
            server.stop()
        finally:
            server.kill()
    for line in failed[:20]:
        print("FAILED:", line)
    print(f"soak: {len(failed)} failures in {options.minutes:g} minutes")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
