"""One server for all rows, beside which a good request of known answer is asked again and again."""

import pathlib
import resource
import socket
import sys

import pytest
import requests

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "clients"))
from lorry_server import Server  # noqa: E402
from prompts import as_turn, story  # noqa: E402

PROMPT = as_turn(story(0))
ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
GROWTH = 32e6  # bytes of memory that the whole file of tests may add: caches, arenas of threads


def pytest_addoption(parser):
    parser.addoption("--lorry", default=str(ROOT / "build/release/lorry"), help="the binary")


@pytest.fixture(scope="session")
def start(request, tmp_path_factory):
    """start(*arguments): a new server, which the caller stops (else it is killed in the end)."""
    servers = []

    def run(*arguments, settings=None):
        servers.append(Server(request.config.getoption("--lorry"), arguments, tmp_path_factory.mktemp("lorry"), settings))
        return servers[-1]

    yield run
    for server in servers:
        server.kill()


class Target:
    """The server, and what can be asked of it."""

    def __init__(self, server):
        self.server, self.url = server, server.url
        self.port = int(server.url.rsplit(":", 1)[1])
        self.answer = self.generate().json()

    def connect(self):
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def generate(self, **parameters):
        return requests.post(self.url + "/generate", timeout=60, json={
            "inputs": PROMPT, "parameters": {"max_new_tokens": 12, "details": True, **parameters}})

    def post(self, path, body):
        """`body`: bytes, or what becomes JSON."""
        if isinstance(body, bytes):
            return requests.post(self.url + path, data=body, timeout=60, headers={"Content-Type": "application/json"})
        return requests.post(self.url + path, json=body, timeout=60)

    def resident(self):
        pages = int(pathlib.Path(f"/proc/{self.server.pid}/statm").read_text().split()[1])
        return pages * resource.getpagesize()

    def check_unharmed(self):
        assert self.server.running(), self.server.log()[-2000:]
        assert self.generate().json() == self.answer


@pytest.fixture(scope="module")
def target(start):
    server = start("demo", "--kv-tokens", "16384", "--adapter-root", str(ROOT / "demo/mixtral/adapters"))
    target = Target(server)
    # What is allocated once: threads' memory, caches, the first grammar.
    for _ in range(3):
        target.generate(response_format={"type": "json_object"})
    before = target.resident()
    yield target
    target.check_unharmed()
    grown = target.resident() - before
    server.stop()
    assert grown < GROWTH, f"memory grew by {grown / 1e6:.1f} MB"


@pytest.fixture
def beside(target):
    """A stream that runs while the test does; it must end as it does alone."""
    body = {"inputs": PROMPT, "parameters": {"max_new_tokens": 200, "ignore_eos_token": True}}
    stream = requests.post(target.url + "/generate_stream", json=body, stream=True, timeout=60)
    lines = stream.iter_lines()
    first = next(lines)
    yield
    events = [first, *(line for line in lines if line)]
    alone = requests.post(target.url + "/generate_stream", json=body, timeout=60)
    assert events == [line for line in alone.content.split(b"\n") if line]
