"""A `lorry serve` process, and what can be seen of it from outside."""

import os
import pathlib
import re
import signal
import subprocess
import time

import requests
from prometheus_client.parser import text_string_to_metric_families

ADDRESS = re.compile(r" on (https?://(?:127\.0\.0\.1|0\.0\.0\.0|localhost)(?::[0-9]+)?)")


def wait_until(condition, what, seconds=30.0, pause=0.01):
    """Returns the first true value of `condition()`."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(pause)


class Server:
    """Runs from construction to stop(). `folder` takes its log, its cache and its temporary files;
    `settings` are environment variables, `verify` is the certificate of a server with TLS."""

    def __init__(self, binary, arguments, folder: pathlib.Path, settings=None, verify=None):
        # Flags can also be environment variables: the server sees none of ours.
        environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "TMPDIR": str(folder),
                       "XDG_CACHE_HOME": str(folder / "cache"), **(settings or {})}
        self._log = folder / "server.log"
        begin = time.monotonic()
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen([binary, "serve", *arguments, "--port", "0"],
                                             stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                             env=environment)
        try:
            self.url = wait_until(self._address, "the address in the log", pause=0.002)
            if "--uds" not in arguments:
                wait_until(lambda: requests.get(self.url + "/health", timeout=30,
                                                verify=verify or True).ok, "/health")
        except BaseException:
            self.kill()
            raise
        self.startup_seconds = time.monotonic() - begin

    @property
    def pid(self):
        return self._process.pid

    def running(self):
        return self._process.poll() is None

    def log(self):
        return self._log.read_text(errors="replace")

    def _address(self):
        if self._process.poll() is not None:
            raise AssertionError(f"lorry ended with {self._process.returncode}:\n{self.log()}")
        found = ADDRESS.search(self.log())
        return found and found.group(1)

    def terminate(self):
        self._process.send_signal(signal.SIGTERM)

    def wait(self, seconds=60):
        """The exit code."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"no end {seconds} s after SIGTERM:\n{self.log()}") from None

    def stop(self):
        self.terminate()
        code = self.wait()
        assert code == 0, f"exit code {code} after SIGTERM:\n{self.log()}"

    def kill(self):
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def cpu_seconds(self):
        """User and system time of all threads so far."""
        fields = pathlib.Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2]
        utime, stime = fields.split()[11:13]
        return (int(utime) + int(stime)) / os.sysconf("SC_CLK_TCK")

    def samples(self):
        """All samples of /metrics; the parser ends the name of every counter with _total."""
        answer = requests.get(self.url + "/metrics", timeout=30)
        answer.raise_for_status()
        return [sample for family in text_string_to_metric_families(answer.text)
                for sample in family.samples]

    def metric(self, name, **labels):
        """The sum of the samples of this name that have these labels; 0 where there is none."""
        return sum(sample.value for sample in self.samples()
                   if sample.name == name and labels.items() <= sample.labels.items())
