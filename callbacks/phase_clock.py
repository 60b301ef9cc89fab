"""How long each phase of the loop takes and how far it has come, from looking at ``loop.progress`` now and then."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_iterppo.progress import Progress


@dataclass
class PhaseRun:
    """One phase of one iteration, as far as it has been seen.

    A phase that begins anew in the same iteration (measuring first one kind of customer, then another) is another run.

    Args:
        phase: its name.
        iteration: the iteration it belongs to.
        started: when the phase before it was last seen, so that its set-up counts as its own time.
        seen: when it was last seen.
        round: the round inside an improvement.
        done: how much of ``total`` is done.
        total: how much there is to do; 0 when not known.
        unit: what is counted.
        tokens: tokens generated or trained so far.
        round_started: when the running round was first seen.
        restarted: whether ``done`` has begun anew within the phase, so that done / total is not the phase's fraction.
        measured: conversations of the runs just before that were the same phase of the same iteration.
    """

    phase: str
    iteration: int
    started: float
    seen: float
    round: int = 0
    done: int = 0
    total: int = 0
    unit: str = ""
    tokens: int = 0
    round_started: float = 0.0
    restarted: bool = False
    measured: int = 0

    @property
    def seconds(self) -> float:
        """From its start to when it was last seen."""
        return self.seen - self.started

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens per second so far; None when nothing was counted or no time has passed."""
        return self.tokens / self.seconds if self.tokens and self.seconds > 0 else None

    @property
    def conversations_per_second(self) -> float | None:
        """Conversations per second so far; None when the phase counts something else or nothing yet."""
        counted = self.unit == "conversations" and self.done and self.seconds > 0
        return self.done / self.seconds if counted else None


class PhaseClock:
    """Follows the loop through its phases.

    Args:
        now: the clock, in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self.begun: float | None = None
        self.running: PhaseRun | None = None
        self.durations: dict[str, list[float]] = {}
        self.seconds_per_conversation: dict[str, float] = {}
        self._elapsed_before = 0.0

    @property
    def now(self) -> float:
        """The clock's time."""
        return self._now()

    @property
    def elapsed(self) -> float:
        """Seconds since the run began, those before a resume included."""
        return self._elapsed_before + (0.0 if self.begun is None else self.now - self.begun)

    def begin(self) -> None:
        """The run begins, or goes on, now."""
        self.begun = self.now
        self.running = None

    def observe(self, progress: Progress) -> bool:
        """Takes in where the loop is; True when it has come to another phase since the last look."""
        now = self.now
        if self.begun is None:
            self.begun = now
        run = self.running
        same = run is not None and (run.phase, run.iteration) == (progress.phase, progress.iteration)
        changed = run is None or not same or _begun_anew(run, progress)
        if changed:
            started, measured = self.begun, 0
            if run is not None:
                self._finish(run)
                started = run.seen
                measured = run.measured + run.done if same and run.unit == "conversations" else 0
            run = PhaseRun(progress.phase, progress.iteration, started, now, measured=measured)
            run.round, run.round_started = progress.round, started
            self.running = run
        assert run is not None
        if progress.round != run.round:
            run.round_started = now
        if not changed and (progress.done < run.done or (run.unit and progress.unit != run.unit)):
            run.restarted = True
        run.seen = now
        run.round, run.done, run.total, run.unit = progress.round, progress.done, progress.total, progress.unit
        run.tokens = progress.tokens
        return changed

    def state_dict(self) -> dict[str, Any]:
        """Durations of the finished phases and the time used so far."""
        return {
            "durations": {phase: list(seconds) for phase, seconds in self.durations.items()},
            "seconds_per_conversation": dict(self.seconds_per_conversation),
            "elapsed": self.elapsed,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave; the time between is not counted."""
        self.durations = {phase: list(seconds) for phase, seconds in state["durations"].items()}
        self.seconds_per_conversation = dict(state["seconds_per_conversation"])
        self._elapsed_before = state["elapsed"]
        self.begun = None
        self.running = None

    def _finish(self, run: PhaseRun) -> None:
        self.durations.setdefault(run.phase, []).append(run.seconds)
        rate = run.conversations_per_second
        if rate is not None:
            self.seconds_per_conversation[run.phase] = 1 / rate


def _begun_anew(run: PhaseRun, progress: Progress) -> bool:
    """Whether the same phase was begun once more: only that takes its tokens, or its conversations, back."""
    fewer = progress.unit == run.unit == "conversations" and progress.done < run.done
    return fewer or progress.tokens < run.tokens
