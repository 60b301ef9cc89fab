"""Sides of a comparison, measured alternately: each a process of its own that does one more piece of work when told.

A machine's speed changes from minute to minute, so that only what was measured side by side may be compared. A side is
a script that calls `serve`; its process keeps what it has loaded, waits without computing while the others work, and
says at its end how much memory it held at most, as the operating system counts it.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


def serve(work: Callable[[], Mapping[str, Any] | None]) -> None:
    """A side's main loop: ``work`` once for every line on standard input, its seconds and what it returns as JSON."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to standard error
    print(json.dumps({"ready": True}), file=channel, flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        found = work() or {}
        print(json.dumps({"seconds": time.perf_counter() - started, **found}), file=channel, flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(json.dumps({"peak_memory_bytes": peak}), file=channel, flush=True)


@dataclass
class Side:
    """One side.

    Args:
        name: in the results.
        command: what its process runs.
        log: where its standard error goes.
    """

    name: str
    command: Sequence[str]
    log: Path
    seconds: list[float] = field(default_factory=list)
    others: list[dict[str, Any]] = field(default_factory=list)
    peak_memory_bytes: int = 0

    def start(self) -> None:
        """Starts the process and waits until it has loaded."""
        self._log = open(self.log, "w", encoding="utf-8")  # noqa: SIM115
        self._process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True
        )
        self._answer()

    def once(self, *, warm_up: bool = False) -> float:
        """One piece of work; its seconds."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        answer = self._answer()
        seconds = float(answer.pop("seconds"))
        if not warm_up:
            self.seconds.append(seconds)
            self.others.append(answer)
        return seconds

    def stop(self) -> None:
        """Ends the process and learns how much memory it held at most."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self.peak_memory_bytes = self._answer()["peak_memory_bytes"]
        self._process.wait()
        self._log.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._log.flush()
            sys.exit(f"{self.name} failed:\n{self.log.read_text(encoding='utf-8')[-2000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def record(self) -> dict[str, Any]:
        """For the results."""
        return {
            "seconds": [round(s, 3) for s in self.seconds],
            "peak_memory_bytes": self.peak_memory_bytes,
            "others": self.others,
        }


def interleave(sides: Sequence[Side], pairs: int, *, warm_ups: int = 0) -> None:
    """Every side once, in turn, ``pairs`` times, after ``warm_ups`` that do not count; the order alternates."""
    for side in sides:
        side.start()
    for number in range(-warm_ups, pairs):
        for side in sides if number % 2 == 0 else reversed(sides):
            seconds = side.once(warm_up=number < 0)
            print(f"{'warm-up' if number < 0 else number + 1}: {side.name} {seconds:.1f} s", flush=True)
    for side in sides:
        side.stop()


def ratio(other: Side, own: Side) -> tuple[float, float, float]:
    """How many times as long the other took: the median over pairs, the lowest and the highest."""
    found = sorted(a / b for a, b in zip(other.seconds, own.seconds, strict=True))
    return statistics.median(found), found[0], found[-1]
