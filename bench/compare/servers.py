"""Servers to compare: started from a command line, or running already."""

from __future__ import annotations

import contextlib
import http.client
import os
import pathlib
import shlex
import signal
import socket
import subprocess
import time
import urllib.parse
from collections.abc import Iterator

import dialects


def kind_of(command: str) -> str:
    """A guess from the program's name."""
    for word in command.split():
        name = pathlib.PurePath(word).name
        if name == "llama-server":
            return "llama.cpp"
        if name == "lorry":
            return "lorry"
    return "openai"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """One server. While it is paused, a server that this object has started gets no processor time at all.

    `command`: a command line with {port}, or the URL of a server that runs already.
    """

    def __init__(self, name: str, command: str, kind: str, log_folder: pathlib.Path) -> None:
        self.name, self.kind, self.command = name, kind, command
        self.process: subprocess.Popen[bytes] | None = None
        self.log = log_folder / f"{name}.log"
        if command.startswith("http://"):
            address = urllib.parse.urlsplit(command)
            self.host, self.port = address.hostname or "127.0.0.1", address.port or 80
            return
        if "{port}" not in command:
            raise SystemExit(f"--server {name}: the command line needs {{port}} where the port goes: {command}")
        self.host, self.port = "127.0.0.1", free_port()
        words = [word.replace("{port}", str(self.port)) for word in shlex.split(command)]
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                            start_new_session=True)

    @property
    def pids(self) -> list[int]:
        return [self.process.pid] if self.process else []

    def wait_until_healthy(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self.is_healthy():
            if self.process and self.process.poll() is not None:
                tail = self.log.read_text(errors="replace")[-2000:]
                raise SystemExit(f"{self.name} ended with {self.process.returncode}:\n{tail}")
            if time.monotonic() > end:
                raise SystemExit(f"{self.name} did not answer /health within {seconds:.0f} s; its log is {self.log}")
            time.sleep(0.2)

    def is_healthy(self) -> bool:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=10)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def pause(self) -> None:
        self.signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.signal(signal.SIGCONT)

    def signal(self, number: signal.Signals) -> None:
        if self.process and self.process.poll() is None:
            os.killpg(self.process.pid, number)

    def stop(self) -> None:
        if not self.process:
            return
        self.go_on()
        self.signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL)
            self.process.wait()


@contextlib.contextmanager
def running(commands: dict[str, str], kinds: dict[str, str], log_folder: pathlib.Path,
            patience_s: float) -> Iterator[list[Server]]:
    """Starts the servers one after another, paused as soon as each is ready, and ends them."""
    servers: list[Server] = []
    try:
        for name, command in commands.items():
            kind = kinds.get(name) or kind_of(command)
            if kind not in dialects.KINDS:
                raise SystemExit(f"--kind {name}={kind}: expected one of {', '.join(dialects.KINDS)}")
            server = Server(name, command, kind, log_folder)
            servers.append(server)
            server.wait_until_healthy(patience_s)
            server.pause()
        yield servers
    finally:
        for server in servers:
            server.stop()
