"""What the machine does while something is measured: who used its cores. Linux; reads /proc."""

from __future__ import annotations

import itertools
import os
import pathlib
import platform
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
TICK = os.sysconf("SC_CLK_TCK")


def busy_seconds() -> float:
    """CPU seconds of all processes since boot, stolen time included."""
    fields = [int(x) for x in pathlib.Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    idle = fields[3] + fields[4]
    return (sum(fields) - idle) / TICK


def process_seconds(pid: int) -> float:
    """CPU seconds of a process, of its threads and of the children it has waited for; 0 when it is gone."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(int(x) for x in fields[11:15]) / TICK


class Others:
    """The cores that other processes than `pids` and this one (its ended children included) used since construction."""

    def __init__(self, pids: list[int]) -> None:
        self.pids = [*pids, os.getpid()]
        self.begin = self.now()

    def now(self) -> tuple[float, float]:
        return time.monotonic(), busy_seconds() - sum(process_seconds(pid) for pid in self.pids)

    def cores(self) -> float:
        end = self.now()
        seconds = max(end[0] - self.begin[0], 1e-3)
        return max(0.0, (end[1] - self.begin[1]) / seconds)


class Quiet:
    """Measures while other processes use at most `cores`: waits for that, and measures again what they disturbed.

    Both take from `patience_s`, which is for the whole run; when it is used up a measurement counts as it is.
    """

    def __init__(self, cores: float, patience_s: float) -> None:
        self.cores = cores
        self.left_s = patience_s

    def measured(self, pids: list[int], measure: Callable[[int], T]) -> tuple[T, float]:
        """What `measure(attempt)` gives, and the cores that others used meanwhile. `pids`: whose work is not others'."""
        for attempt in itertools.count():
            self.wait(pids)
            begin, others = time.monotonic(), Others(pids)
            value = measure(attempt)
            cores = others.cores()
            if cores <= self.cores or self.left_s <= 0:
                return value, cores
            self.left_s -= time.monotonic() - begin
        raise AssertionError

    def wait(self, pids: list[int]) -> None:
        while self.left_s > 0:
            others = Others(pids)
            time.sleep(1.0)
            if others.cores() <= self.cores:
                return
            time.sleep(4.0)
            self.left_s -= 5.0


def description() -> dict[str, object]:
    name = platform.processor() or platform.machine()
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            name = line.partition(":")[2].strip()
            break
    return {"cpu": name, "cores": os.cpu_count(), "date": time.strftime("%Y-%m-%d %H:%M"),
            "load_average": list(os.getloadavg())}
