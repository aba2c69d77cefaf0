"""deploy/ray with two replicas of the demo model: the same answers as one server, adapters at home on a
replica, streams, a server that is killed, an end that leaves nothing."""

import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
import yaml

from lorry_server import Server, wait_until
from prompts import as_turn, chat, story

ROOT = pathlib.Path(__file__).resolve().parents[2]
LORRY = str(ROOT / "build/release/lorry")
ADAPTERS = ["json", "french", "pirate", "summary", "bullets", "poem"]
FLAGS = "--threads 1"


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Fleet:
    """`serve run` with deploy/ray/config.yaml, made for this machine."""

    def __init__(self, folder):
        self.name = f"fleet-{os.getpid()}"
        self._temporary = tempfile.mkdtemp(prefix="ray-")  # its sockets need short paths
        self._folder = folder
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self._log = folder / "log"
        self._environment = {
            "PATH": os.environ["PATH"], "HOME": str(folder), "TMPDIR": self._temporary,
            "RAY_TMPDIR": self._temporary, "RAY_USAGE_STATS_ENABLED": "0", "NO_PROXY": "127.0.0.1",
            "PYTHONPATH": str(ROOT / "deploy/ray"), "PYTHONDONTWRITEBYTECODE": "1"}
        with open(self._log, "wb") as log:
            # A shell lets what it runs in the background ignore interrupts, by which this one is ended.
            self._process = subprocess.Popen(
                self._command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment,
                cwd=folder, start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
        try:
            wait_until(self._is_up, "the fleet", seconds=150, pause=0.2)
        except BaseException:
            print(self.log()[-8000:])
            self.stop()
            raise

    def _command(self, *more, replicas=2):
        config = yaml.safe_load((ROOT / "deploy/ray/config.yaml").read_text())
        config["http_options"]["port"] = self._port
        config["applications"][0]["args"].update(
            lorry=LORRY, served_model_name=self.name, flags=FLAGS, cpus_per_replica=0.5,
            min_replicas=replicas, max_replicas=replicas, drain_seconds=5)
        file = self._folder / "config.yaml"
        file.write_text(yaml.safe_dump(config))
        return [str(pathlib.Path(sys.executable).parent / "serve"), "run", *more, str(file)]

    def scale(self, replicas):
        """Another configuration for what runs, as README.md says."""
        command = self._command("--address", "auto", "--non-blocking", replicas=replicas)
        subprocess.run(command, check=True, timeout=90, stdin=subprocess.DEVNULL, capture_output=True,
                       env=self._environment, cwd=self._folder)

    def _is_up(self):
        assert self._process.poll() is None, "serve run ended"
        assert "Deploying app 'lorry' failed" not in self.log()
        try:
            return requests.get(self.url + "/health", timeout=30).ok and len(self.servers()) == 2
        except requests.ConnectionError:
            return False

    def log(self):
        return self._log.read_text(errors="replace")

    def servers(self):
        """The process ids of its lorry processes."""
        found = set()
        for folder in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if words[0] == LORRY.encode() and self.name.encode() in words and b"--uds" in words:
                found.add(int(folder.name))
        return found

    def stop(self):
        # Again, as one does at a terminal: Python drops an interrupt that comes while it runs a
        # callback of Ray's, and `serve run` waits on.
        for _ in range(4):
            if self._process.poll() is not None:
                break
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                print("serve run goes on after an interrupt:", self.log()[-2000:])
        else:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            raise AssertionError("serve run does not end")
        shutil.rmtree(self._temporary, ignore_errors=True)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    running = Fleet(tmp_path_factory.mktemp("fleet"))
    yield running
    running.stop()
    wait_until(lambda: not running.servers(), "the end of its servers")


@pytest.fixture(scope="module")
def alone(tmp_path_factory, fleet):
    running = Server(LORRY, ["demo", "--served-model-name", fleet.name, *FLAGS.split()],
                     tmp_path_factory.mktemp("lorry"))
    yield running
    running.stop()


def generate(url, adapter=None, n=24, path="/generate", **more):
    return requests.post(url + path, timeout=120, **more, json={"inputs": as_turn(story(3)), "parameters": {
        "adapter_id": adapter, "max_new_tokens": n, "ignore_eos_token": True, "details": True}})


def test_the_readme_names_every_argument():
    sys.path.insert(0, str(ROOT / "deploy/ray"))
    import lorry_serve
    readme = (ROOT / "deploy/ray/README.md").read_text()
    for name in lorry_serve.Settings.model_fields:
        assert f"`{name}`" in readme, name
    example = yaml.safe_load((ROOT / "deploy/ray/config.yaml").read_text())["applications"][0]["args"]
    assert set(example) <= set(lorry_serve.Settings.model_fields)


def test_answers_are_those_of_one_server(fleet, alone):
    for adapter in [None, *ADAPTERS]:
        ours, theirs = generate(fleet.url, adapter), generate(alone.url, adapter)
        assert ours.status_code == 200 and ours.json() == theirs.json(), adapter
        assert ours.headers["x-generated-tokens"] == "24"
        body = {"model": adapter or fleet.name, "messages": chat(story(1)), "temperature": 0, "max_tokens": 20}
        texts = [requests.post(url + "/v1/chat/completions", json=body, timeout=120).json()["choices"]
                 for url in (fleet.url, alone.url)]
        assert texts[0] == texts[1], adapter
    models = requests.get(fleet.url + "/v1/models", timeout=30).json()["data"]
    assert [model["id"] for model in models] == [fleet.name, *sorted(ADAPTERS)]


def test_errors_come_through(fleet, alone):
    bad = generate(fleet.url, n=0)
    assert (bad.status_code, bad.text) == (422, generate(alone.url, n=0).text)
    assert generate(fleet.url, "no-such").status_code == 424
    assert requests.get(fleet.url + "/no/such%20path?x=1", timeout=30).status_code == 404
    broken = requests.post(fleet.url + "/v1/completions", data="{", timeout=30,
                           headers={"content-type": "application/json"})
    assert broken.status_code == 400 and broken.json()["error"]["type"] == "invalid_request_error"
    for path in ("/v1/adapters", "/metrics"):
        refused = requests.get(fleet.url + path, timeout=30)
        assert refused.status_code == 400 and "fleet" in refused.text
    answer = generate(fleet.url, headers={"x-request-id": "mine-7"})
    assert answer.headers["x-request-id"] == "mine-7"


def test_an_adapter_stays_with_its_replica(fleet):
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda name: (name, generate(fleet.url, name)), ADAPTERS * 6))
    homes = {}
    for name, answer in answers:
        assert answer.status_code == 200, answer.text
        homes.setdefault(name, set()).add(answer.headers["x-lorry-replica"])
    assert all(len(replicas) == 1 for replicas in homes.values()), homes
    # And not all with the same: unknown ones, of which there can be many, are routed as well.
    assert len({generate(fleet.url, f"no-{i}").headers["x-lorry-replica"] for i in range(24)}) == 2
    # The base model is everywhere.
    assert len({generate(fleet.url, n=1).headers["x-lorry-replica"] for _ in range(24)}) == 2


def test_streams_come_in_pieces(fleet, alone):
    with generate(fleet.url, "pirate", 200, "/generate_stream", stream=True) as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        pieces = [piece.decode() for piece in answer.iter_content(None)]
    assert len(pieces) > 5 and '"details":{' not in pieces[0] and '"details":{' in pieces[-1]
    events = "".join(pieces).split("\n\n")
    assert events.pop() == "" and len(events) == 200
    last = json.loads(events[-1].removeprefix("data: "))
    assert last["generated_text"] == generate(alone.url, "pirate", 200).json()["generated_text"]


def test_a_client_that_leaves_is_told_to_the_server(fleet):
    with generate(fleet.url, "poem", 900, "/generate_stream", stream=True,
                  headers={"x-request-id": "leaves-9"}) as answer:
        next(answer.iter_content(None))
    line = wait_until(lambda: re.search("request id=leaves-9 .*", fleet.log()), "the server's line", pause=0.2)
    assert "outcome=client_closed" in line.group(0)


def test_a_server_that_is_killed_costs_no_request(fleet, alone):
    expected = {name: generate(alone.url, name).json() for name in [None, *ADAPTERS]}
    before = fleet.servers()
    assert len(before) == 2
    os.kill(min(before), signal.SIGKILL)
    # Half of them would have been its own.
    for _ in range(3):
        for name, answer in expected.items():
            ours = generate(fleet.url, name)
            assert ours.status_code == 200 and ours.json() == answer, name
    new = wait_until(lambda: len(fleet.servers()) == 2 and fleet.servers() - before, "another server",
                     seconds=90, pause=0.2)
    assert len(new) == 1
    # It is routed to.
    wait_until(lambda: len({generate(fleet.url, n=1).headers["x-lorry-replica"] for _ in range(8)}) == 2,
               "answers of the new one", seconds=60)
    for name, answer in expected.items():
        assert generate(fleet.url, name).json() == answer, name


def test_scaling_down_costs_no_request(fleet, alone):
    """Last, as one server is left."""
    expected = {name: generate(alone.url, name).json() for name in [None, *ADAPTERS]}
    scaled, done = threading.Event(), threading.Event()
    assert len(fleet.servers()) == 2

    def ask(name):
        n = 0
        while not done.is_set():
            answer = generate(fleet.url, name)
            assert answer.status_code == 200 and answer.json() == expected[name], (name, answer.text)
            n += scaled.is_set()
        return n

    with ThreadPoolExecutor(len(expected)) as pool:
        asked = [pool.submit(ask, name) for name in expected]
        try:
            fleet.scale(1)
            scaled.set()
            wait_until(lambda: len(fleet.servers()) == 1, "the end of one", seconds=90, pause=0.2)
        finally:
            done.set()
        assert all(job.result() > 0 for job in asked)
    # Ray brings the servers' lines here late.
    wait_until(lambda: "shutting down: running requests have 5 s" in fleet.log(), "the server's line", pause=0.2)
