"""Rounds of figures -> medians, spreads and ratios, as a table and as JSON."""

from __future__ import annotations

import json
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

LOWER_IS_BETTER = ("TTFT",)


def spread(values: Sequence[float]) -> dict[str, Any]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "rounds": list(values)}


class Results:
    """Figures by what was measured, figure and contender. The first contender is the one that ratios are of."""

    def __init__(self) -> None:
        self.commands: dict[str, str] = {}  # by contender, in order
        self.rounds: dict[str, dict[str, dict[str, list[float]]]] = {}
        self.notes: list[str] = []
        self.others: list[float] = []  # cores that other processes used, by measurement

    def add(self, what: str, name: str, figures: dict[str, float]) -> None:
        for figure, value in figures.items():
            by_name = self.rounds.setdefault(what, {}).setdefault(figure, {})
            by_name.setdefault(name, []).append(value)

    def ratios(self, by_name: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
        """The first contender's figure divided by each other's, round by round."""
        first_name = next(iter(self.commands))
        first = by_name.get(first_name, [])
        return {name: spread([a / b for a, b in zip(first, values)])
                for name, values in by_name.items() if name != first_name and first}

    def to_json(self, machine: dict[str, object]) -> dict[str, Any]:
        results = [{"what": what, "figure": figure, "lower_is_better": figure.startswith(LOWER_IS_BETTER),
                    "by_name": {name: spread(values) for name, values in by_name.items()},
                    "ratio": self.ratios(by_name)}
                   for what, figures in self.rounds.items() for figure, by_name in figures.items()]
        return {"machine": machine, "commands": self.commands, "notes": self.notes, "results": results,
                "cores_used_by_others": spread(self.others) if self.others else None}

    def table(self) -> str:
        lines = []
        width = max((len(name) for name in self.commands), default=0)
        for what, figures in self.rounds.items():
            lines.append(what)
            for figure, by_name in figures.items():
                mark = " (lower is better)" if figure.startswith(LOWER_IS_BETTER) else ""
                lines.append(f"  {figure}{mark}")
                ratios = self.ratios(by_name)
                for name in self.commands:
                    if name in by_name:
                        lines.append(f"    {name:<{width}}  {row(spread(by_name[name]))}{against(ratios.get(name))}")
        if self.others:
            lines.append(f"cores used by other processes: median {statistics.median(self.others):.2f}, "
                         f"most {max(self.others):.2f}")
        lines += self.notes
        return "\n".join(lines)

    def write(self, path: pathlib.Path | None, machine: dict[str, object]) -> None:
        print(self.table(), flush=True)
        if path:
            path.write_text(json.dumps(self.to_json(machine), indent=1) + "\n")


def row(s: dict[str, Any]) -> str:
    return f"{s['median']:9.4g}  ({s['min']:.4g} to {s['max']:.4g}, {len(s['rounds'])} rounds)"


def against(ratio: dict[str, Any] | None) -> str:
    """What the first contender's figure is in this one's."""
    if not ratio:
        return ""
    return f"   first / this = {ratio['median']:.3g} ({ratio['min']:.3g} to {ratio['max']:.3g})"
