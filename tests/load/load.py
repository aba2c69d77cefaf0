#!/usr/bin/env python3
"""The server under load: idle connections and streams, many times more requests than it can take, and
clients that vanish.

    tests/load/load.py [--full] [crowd] [overload] [vanish]     (all)

Without --full: fewer connections and generous bounds, for a machine that does other things. With it:
the figures that are promised.
"""

import argparse
import asyncio
import heapq
import http.client
import pathlib
import random
import selectors
import socket
import sys
import tempfile
import time

from wire import (ROOT, Connection, Server, as_turn, ask, message, percentile, port_of, raise_file_limit,
                  resident, story)

FAILED = []


def demand(condition, text):
    print(("ok      " if condition else "FAILED  ") + text, flush=True)
    if not condition:
        FAILED.append(text)


def stream(number, tokens):
    return message("POST", "/generate_stream", {"inputs": as_turn(story(number % 840)), "parameters": {
        "max_new_tokens": tokens, "ignore_eos_token": True}})


async def open_many(port, n, at_a_time=200):
    opened = []
    while len(opened) < n:
        opened += await asyncio.gather(*[Connection.open(port) for _ in range(min(at_a_time, n - len(opened)))])
    return opened


async def read_stream(connection, number, tokens, stop):
    """One stream after the other on a connection; their count."""
    done = 0
    while not stop.is_set():
        await connection.send(stream(number + done, tokens))
        status, _ = await connection.head()
        assert status == 200, status
        while await connection.chunk():
            pass
        done += 1
    return done


async def crowd(server, options):
    """Idle connections and streams: /health and /metrics answer at once."""
    port = port_of(server)
    n_idle, n_streams, samples, bound = (5000, 500, 300, 0.1) if options.full else (1000, 100, 60, 1.0)
    before = resident(server)
    idle = await open_many(port, n_idle)
    streaming = await open_many(port, n_streams)
    stop = asyncio.Event()
    streams = [asyncio.create_task(read_stream(c, i, 200, stop)) for i, c in enumerate(streaming)]
    await asyncio.sleep(2)
    for path in ("/health", "/metrics"):
        times = []
        for _ in range(samples):
            # As another process sees it: on a thread that does not read the streams.
            times.append(await asyncio.to_thread(blocking_get, port, path))
            await asyncio.sleep(0.02)
        demand(percentile(times, 99) < bound, f"{path} with {n_idle} idle connections and {n_streams} streams: p50 "
               f"{1e3 * percentile(times, 50):.1f} ms, p99 {1e3 * percentile(times, 99):.1f} ms (< {1e3 * bound:.0f} ms)")
    memory = (resident(server) - before) / (n_idle + n_streams)
    stop.set()
    done = sum(await asyncio.gather(*streams))
    print(f"        {done} streams ended, {memory / 1024:.1f} KiB of memory a connection")
    for connection in idle:
        connection.close()
    for connection in streaming:
        connection.close()


def blocking_get(port, path):
    begin = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    assert answer.status == 200, answer.status
    return time.monotonic() - begin


class Client:
    """Asks again at once; who is refused waits first, about as long as Retry-After says."""

    def __init__(self, port, number, tokens):
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Written once: what the clients take of the machine is not there for the server. The same prompts however
        # many clients there are: the prefix cache does as much for a crowd.
        self.request = message("POST", "/generate", {"inputs": as_turn(story(number % 64)), "parameters": {
            "max_new_tokens": tokens, "ignore_eos_token": True}})
        self.answer = b""

    def ask(self):
        self.socket.sendall(self.request)

    def read(self):
        """(status, seconds to wait or None) once the answer is whole."""
        part = self.socket.recv(1 << 16)
        assert part, "the server has closed"
        self.answer += part
        head, _, body = self.answer.partition(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        if b"content-length" not in fields or len(body) < int(fields[b"content-length"]):
            return None
        status, self.answer = int(head[9:12]), b""
        return status, None if status == 200 else int(fields.get(b"retry-after", b"-1"))


def goodput(port, n_clients, seconds, tokens):
    """(requests a second that were answered with 200, all statuses, every refusal said when to come back)."""
    waiting, seen = [], []  # a heap of (when, place in clients); (when, status, seconds)
    clients = [Client(port, i, tokens) for i in range(n_clients)]
    begin = time.monotonic()
    end = begin + seconds
    with selectors.EpollSelector() as selector:
        for i, client in enumerate(clients):
            selector.register(client.socket, selectors.EVENT_READ, i)
            client.ask()
        while (now := time.monotonic()) < end:
            while waiting and waiting[0][0] <= now:
                clients[heapq.heappop(waiting)[1]].ask()
            for key, _ in selector.select(min(end, waiting[0][0] if waiting else end) - now):
                client = clients[key.data]
                answer = client.read()
                if answer is None:
                    continue
                seen.append((time.monotonic(), *answer))
                if answer[0] == 200:
                    client.ask()
                else:
                    heapq.heappush(waiting, (seen[-1][0] + answer[1] * random.uniform(0.75, 1.25), key.data))
    for client in clients:
        client.socket.close()
    # The first part: not all clients are at work.
    answered = sum(status == 200 for t, status, _ in seen if t > begin + seconds / 6)
    return (answered / (seconds * 5 / 6), {status for _, status, _ in seen},
            all(told > 0 for _, status, told in seen if status == 429))


async def overload(server, options):
    """Ten times as many clients as there are places: refusals are 429, the others do not suffer."""
    port = port_of(server)
    places, seconds, rounds, bound = (64, 12, 3, 0.95) if options.full else (64, 5, 1, 0.6)
    best, ratios = 0.0, []
    for _ in range(rounds):
        alone, statuses, _ = goodput(port, places, seconds, 60)
        demand(statuses == {200}, f"{places} clients on {places} places: {alone:.1f} answers/s, statuses {sorted(statuses)}")
        crowded, statuses, told = goodput(port, 10 * places, seconds, 60)
        demand(statuses <= {200, 429} and told, f"{10 * places} clients: {crowded:.1f} answers/s, statuses {sorted(statuses)}, "
               "each 429 with Retry-After")
        best = max(best, alone)
        ratios.append(crowded / alone)
    ratio = sorted(ratios)[len(ratios) // 2]
    demand(ratio >= bound, f"goodput in overload is {100 * ratio:.0f} % of that without (>= {100 * bound:.0f} %)")


async def vanish(server, options):
    """Clients leave in the queue, in the prefill and in mid-stream, with FIN and with RST."""
    port = port_of(server)
    n = 1000 if options.full else 300
    connections = await open_many(port, n)

    async def leave(connection, number):
        long = number % 4 == 1
        await connection.send(stream(number, 400) if not long else message("POST", "/generate", {
            "inputs": as_turn(story(number % 840) * 20), "parameters": {"max_new_tokens": 200, "ignore_eos_token": True}}))
        if number % 4 >= 2 and number < 64:  # of these the first steps' places: in mid-stream
            await connection.head()
            await connection.chunk()
        connection.reset() if number % 2 else connection.close()

    await asyncio.gather(*[leave(c, i) for i, c in enumerate(connections)])
    begin = time.monotonic()
    bound = 2.0 if options.full else 20.0

    def left():
        return (server.metric("vllm:num_requests_running"), server.metric("vllm:num_requests_waiting"),
                server.metric("vllm:kv_cache_usage_perc"))
    state = await asyncio.to_thread(left)
    while any(state) and time.monotonic() - begin < 30:
        await asyncio.sleep(0.02)
        state = await asyncio.to_thread(left)
    seconds = time.monotonic() - begin
    demand(not any(state) and seconds < bound,
           f"{n} clients vanish: nothing runs, waits or holds KV blocks after {seconds:.2f} s (< {bound:.0f} s): {state}")
    reply = await ask(port, "POST", "/generate", {"inputs": as_turn(story(1)), "parameters": {"max_new_tokens": 5}})
    demand(reply.status == 200, "and the server goes on")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["crowd", "overload", "vanish"], help="crowd, overload, vanish")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--lorry", default=str(ROOT / "build/release/lorry"))
    options = parser.parse_args()
    raise_file_limit()
    places = {"crowd": "1024", "overload": "64", "vanish": "1024"}
    for name in options.what:
        with tempfile.TemporaryDirectory() as folder:
            server = Server(options.lorry, ["demo", "--disable-log-requests", "--max-concurrent-requests", places[name]],
                            pathlib.Path(folder))
            try:
                asyncio.run(globals()[name](server, options))
                server.stop()
            finally:
                server.kill()
    print(f"load: {len(FAILED)} failures")
    return 1 if FAILED else 0


if __name__ == "__main__":
    sys.exit(main())
