#!/usr/bin/env python3
"""What serving costs: tokens per second over HTTP, streamed to 16 clients, beside what the model's own
steps give in one process (`lorry bench --warm`).

    tests/load/overhead.py [--model demo/mixtral] [--tokens 960] [--rounds 5]

Both do the same steps: a prefill of all prompts, then a step for each further token, over the same
lengths of context, one right after the other. The bench's have random tokens, keys and values, and no
sampling; what is served has its tokens chosen (greedily, with log-probabilities), turned into text and
written to sockets, and its clients are on the same machine. So the share that is told is of all of that.
Each round measures both, in turn; medians are told. The clients read a hundred times a second, as one
process: they take little of the machine that is measured.
"""

import argparse
import json
import pathlib
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import time

from wire import ROOT, Server, message, port_of, story


WARM_UPS = 2  # steps of `lorry bench` that are not measured, each a token further


def bench(lorry, model, *arguments):
    out = subprocess.run([lorry, "bench", "--model", model, "--json", "--warm", *arguments], check=True,
                         capture_output=True, text=True).stdout
    [result] = json.loads(out)["results"]
    return result["seconds"]


def in_process(lorry, model, batch, prompt, tokens):
    """Seconds for one prefill of all prompts, and for the steps that follow the first token."""
    prefill = bench(lorry, model, "--kind", "prefill", "--batch", str(batch), "--tokens", str(batch * prompt),
                    "--reps", "20")
    decode = bench(lorry, model, "--kind", "decode", "--batch", str(batch), "--context", str(prompt - WARM_UPS),
                   "--reps", str(tokens - 1))
    return prefill + (tokens - 1) * decode


def over_http(port, batch, prompts, tokens, path):
    """Seconds from the first byte of the requests to the last byte of the answers."""
    bodies = [{"inputs": p, "parameters": {"max_new_tokens": tokens, "ignore_eos_token": True}} for p in prompts]
    if path.startswith("/v1"):
        bodies = [{"prompt": p, "max_tokens": tokens, "ignore_eos": True, "temperature": 0, "stream": True}
                  for p in prompts]
    connections = [socket.create_connection(("127.0.0.1", port)) for _ in range(batch)]
    begin = time.monotonic()
    for connection, body in zip(connections, bodies):
        connection.sendall(message("POST", path, body, "Connection: close"))
    waiting = selectors.DefaultSelector()
    answers = {}
    for connection in connections:
        connection.setblocking(False)
        waiting.register(connection, selectors.EVENT_READ)
        answers[connection] = []
    while waiting.get_map():
        time.sleep(0.01)
        for key, _ in waiting.select(10):
            part = key.fileobj.recv(1 << 20)
            answers[key.fileobj].append(part)
            if not part:
                waiting.unregister(key.fileobj)
    seconds = time.monotonic() - begin
    for connection, parts in answers.items():
        connection.close()
        events = b"".join(parts).count(b"data: {")
        assert events >= tokens - 1, f"{events} events of {tokens}"
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lorry", default=str(ROOT / "build/release/lorry"))
    parser.add_argument("--model", default=str(ROOT / "demo/mixtral"))
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=960)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--path", default="/generate_stream", choices=["/generate_stream", "/v1/completions"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = Server(options.lorry, [options.model, "--disable-log-requests", "--prefix-caching", "false"],
                        pathlib.Path(folder))
        try:
            port = port_of(server)
            prompts = [story(i) for i in range(options.batch)]
            over_http(port, options.batch, prompts, 8, options.path)
            n_prompt = round(server.metric("vllm:prompt_tokens_total") / options.batch)
            shares, served, alone = [], [], []
            for _ in range(options.rounds):
                cpu = server.cpu_seconds()
                seconds = over_http(port, options.batch, prompts, options.tokens, options.path)
                cpu = server.cpu_seconds() - cpu
                model = in_process(options.lorry, options.model, options.batch, n_prompt, options.tokens)
                count = options.batch * options.tokens
                served.append(count / seconds)
                alone.append(count / model)
                shares.append(model / seconds)
                print(f"over HTTP {served[-1]:8.0f} tokens/s ({cpu / seconds:.2f} cores)   in process {alone[-1]:8.0f} "
                      f"tokens/s   {100 * shares[-1]:.0f} %", flush=True)
            server.stop()
        finally:
            server.kill()
    print(f"overhead: {options.batch} streams of {n_prompt} + {options.tokens} tokens: over HTTP "
          f"{statistics.median(served):.0f} tokens/s, in process {statistics.median(alone):.0f}, "
          f"{100 * statistics.median(shares):.0f} % (medians of {options.rounds}; shares from "
          f"{100 * min(shares):.0f} to {100 * max(shares):.0f} %)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
