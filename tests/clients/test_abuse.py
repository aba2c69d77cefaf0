"""Hostile and careless HTTP against the real binary. The names are rows of the list of bad inputs."""

import pathlib
import resource
import socket
import time

import pytest
import requests

from lorry_server import wait_until
from prompts import as_turn, story

PROMPT = as_turn(story(0))
JSON = b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def target(start, model_arguments):
    server = start(*model_arguments)
    requests.post(server.url + "/generate", timeout=60, json={"inputs": PROMPT})
    yield server
    server.stop()


def connect(server):
    return socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1])), timeout=30)


def resident(server):
    """Bytes of memory in use."""
    pages = int(pathlib.Path(f"/proc/{server.pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def status(connection):
    answer = connection.makefile("rb").readline()
    return int(answer.split()[1]) if answer else 0


def send_until_refused(connection, pieces):
    try:
        for piece in pieces:
            connection.sendall(piece)
    except OSError:
        pass
    return status(connection)


def test_A1_headers_without_end_cost_no_memory(target):
    before = resident(target)
    for _ in range(20):
        with connect(target) as connection:
            pieces = (b"X%d: %s\r\n" % (i, b"a" * 1000) for i in range(1000))
            assert send_until_refused(connection, [b"GET / HTTP/1.1\r\n", *pieces]) == 431
    assert resident(target) - before < 20e6


def test_A2_bodies_without_end_cost_no_memory(target):
    before = resident(target)
    for _ in range(5):
        with connect(target) as connection:
            chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
            head = JSON + b"Transfer-Encoding: chunked\r\n\r\n"
            assert send_until_refused(connection, [head, *[chunk] * 200]) == 413
    assert resident(target) - before < 30e6


def test_A4_a_million_chunks_of_one_byte(target):
    before = resident(target)
    with connect(target) as connection:
        connection.sendall(JSON + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(100):
            connection.sendall(b"1\r\n \r\n" * 10_000)
        connection.sendall(b"2\r\n{}\r\n0\r\n\r\n")
        assert status(connection) == 422  # whole and parsed: `inputs` is missing
    assert resident(target) - before < 30e6


def test_A8_idle_connections_and_streams_do_not_slow_others(target):
    room = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    n = min(5000, room - 200)
    idle = [connect(target) for _ in range(n)]
    slowest = 0.0
    for path in ["/health", "/metrics"] * 3:
        begin = time.monotonic()
        assert requests.get(target.url + path, timeout=30).ok
        slowest = max(slowest, time.monotonic() - begin)
    for one in idle:
        one.close()
    assert slowest < 0.5, f"{slowest} s with {n} idle connections"  # the machine has others


def test_I3_a_client_that_leaves_at_any_time_leaves_nothing(target):
    body = b'{"inputs":"Hello","parameters":{"max_new_tokens":400,"ignore_eos_token":true}}'
    request = JSON + b"Content-Length: %d\r\n\r\n" % len(body) + body
    for cut in [1, 20, len(JSON), len(request) - 1, *[len(request)] * 20]:
        with connect(target) as connection:
            connection.sendall(request[:cut])
    wait_until(lambda: target.metric("vllm:num_requests_running") == 0, "nothing is running", 10)
    assert target.metric("vllm:num_requests_waiting") == 0
    assert target.metric("vllm:kv_cache_usage_perc") == 0


def test_I12_only_a_steady_clock_measures():
    """The wall clock is read for what is told, never for how long something took."""
    source = pathlib.Path(__file__).resolve().parents[2] / "src"
    users = {str(f.relative_to(source)) for f in source.rglob("*.[ch]*")
             if "system_clock" in f.read_text() and f.parts[-2] in ("serve", "engine", "adapters")}
    assert users <= {"serve/metrics.cpp", "serve/service_tell.cpp"}, users
