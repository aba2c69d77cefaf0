"""Section A: the HTTP layer."""

import concurrent.futures
import http.client
import os
import pathlib
import re
import socket
import subprocess
import time

import pytest
import requests

from conftest import PROMPT
from lorry_server import wait_until

JSON = b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


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
    before = target.resident()
    for _ in range(20):
        with target.connect() as connection:
            pieces = (b"X%d: %s\r\n" % (i, b"a" * 1000) for i in range(1000))
            assert send_until_refused(connection, [b"GET / HTTP/1.1\r\n", *pieces]) == 431
    assert target.resident() - before < 20e6


def test_A2_bodies_without_end_cost_no_memory(target):
    before = target.resident()
    for _ in range(5):
        with target.connect() as connection:
            chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
            head = JSON + b"Transfer-Encoding: chunked\r\n\r\n"
            assert send_until_refused(connection, [head, *[chunk] * 200]) == 413
    assert target.resident() - before < 30e6


def test_A4_a_million_chunks_of_one_byte(target, beside):
    before = target.resident()
    with target.connect() as connection:
        connection.sendall(JSON + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(100):
            connection.sendall(b"1\r\n \r\n" * 10_000)
        connection.sendall(b"2\r\n{}\r\n0\r\n\r\n")
        assert status(connection) == 422  # whole and parsed: `inputs` is missing
    assert target.resident() - before < 30e6


def slowly(target, first, byte):
    with target.connect() as connection:
        begin = time.monotonic()
        connection.sendall(first)
        connection.settimeout(1)
        while time.monotonic() - begin < 40:
            try:
                connection.sendall(byte)
                answer = connection.recv(100)
                return int(answer.split()[1]), time.monotonic() - begin
            except TimeoutError:
                pass
    return 0, 0


def test_A5_A6_a_slow_header_and_a_slow_body_are_408(target):
    with concurrent.futures.ThreadPoolExecutor() as pool:
        head = pool.submit(slowly, target, b"GET / HTTP/1.1\r\nX: ", b"a")
        body = pool.submit(slowly, target, JSON + b"Content-Length: 1000\r\n\r\n{", b" ")
        for code, seconds in (head.result(), body.result()):
            assert code == 408 and 9 < seconds < 30


def test_A7_a_client_that_does_not_read_is_cut_off(target, beside):
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", target.port))
    # More than the system's own buffers hold.
    body = (b'{"messages": [{"role": "user", "content": "a"}], "n": 8, "max_tokens": 900, "ignore_eos": true, '
            b'"temperature": 1, "logprobs": true, "top_logprobs": 20, "stream": true}')
    connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                       b"Content-Length: %d\r\n\r\n" % len(body) + body)
    wait_until(lambda: target.server.metric("lorax_request_failure_total", err="client_closed") > 0, "the cut", 60)
    wait_until(lambda: target.server.metric("vllm:kv_cache_usage_perc") < 0.5, "its blocks are free", 30)
    connection.close()


def test_A10_a_request_id_with_control_bytes_is_not_sent_back(target):
    for given in ("a" * 129, "a b", "\x7f", "\u00e4"):
        connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=30)
        connection.putrequest("GET", "/version")
        connection.putheader("X-Request-Id", given.encode("latin-1"))
        connection.endheaders()
        answer = connection.getresponse()
        assert answer.status in (200, 400) and answer.getheader("x-request-id") != given
        connection.close()


def test_A11_another_content_type_is_415(target):
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
        answer = requests.post(target.url + "/generate", data=b'{"inputs":"x"}', headers={"Content-Type": kind}, timeout=30)
        assert answer.status_code == 415


def test_A13_no_page_of_another_origin_may_read(target):
    answer = requests.get(target.url + "/health", timeout=30, headers={"Origin": target.url})
    assert not any(name.lower().startswith("access-control") for name in answer.headers)


@pytest.mark.parametrize("headers", [{"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Origin": "null"},
                                     {"Host": "127.0.0.1.evil.example"}, {"Host": "localhost.evil.example:80"}])
def test_A14_a_foreign_host_or_origin_is_403(target, headers):
    for path in ("/health", "/metrics", "/"):
        assert requests.get(target.url + path, headers=headers, timeout=30).status_code == 403
    answer = requests.post(target.url + "/generate", json={"inputs": PROMPT}, headers=headers, timeout=30)
    assert answer.status_code == 403


@pytest.mark.parametrize("arguments", [["--port", "PORT"], ["--host", "no.such.host.invalid"], ["--host", "192.0.2.1"],
                                       ["--uds", "/nonexistent/folder/socket"]])
def test_A16_an_address_that_cannot_be_used_ends_with_one_line(request, target, tmp_path, arguments):
    arguments = [str(target.port) if a == "PORT" else a for a in arguments]
    ended = subprocess.run([request.config.getoption("--lorry"), "serve", "demo", *arguments], capture_output=True, text=True,
                           timeout=60, env={"HOME": str(tmp_path), "TMPDIR": str(tmp_path)})
    assert ended.returncode == 1
    lines = ended.stderr.strip().splitlines()
    assert len(lines) == 1, ended.stderr


def test_A16_a_privileged_port_ends_with_what_to_do(request, tmp_path):
    if int(pathlib.Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) <= 80:
        pytest.skip("here any user may use any port")
    command = [request.config.getoption("--lorry"), "serve", "demo", "--port", "80"]
    if os.geteuid() == 0:  # root may, but for this
        command = ["setpriv", "--bounding-set=-net_bind_service", "--inh-caps=-net_bind_service", *command]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60,
                           env={"HOME": str(tmp_path), "TMPDIR": str(tmp_path), "PATH": os.environ["PATH"]})
    assert ended.returncode == 1
    [line] = ended.stderr.strip().splitlines()
    assert "this user may not use this port: choose a --port from 1024 on" in line


def test_A16_ipv6_is_an_address(request, tmp_path):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    log = tmp_path / "log"
    with open(log, "wb") as out:
        server = subprocess.Popen([request.config.getoption("--lorry"), "serve", "demo", "--host", "::1", "--port", "0",
                                   "--kv-tokens", "4096"], stdout=out, stderr=out,
                                  env={"HOME": str(tmp_path), "TMPDIR": str(tmp_path)})
    try:
        url = wait_until(lambda: re.search(r"http://\[::1\]:[0-9]+", log.read_text()), "the address in the log").group()
        assert requests.get(url + "/health", timeout=30).status_code == 200
    finally:
        server.terminate()
        assert server.wait(60) == 0
