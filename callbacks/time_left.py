"""Estimates how long a run will still take, from the durations of its finished phases. None when it cannot be known."""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING

from lightning_iterppo.callbacks.phase_clock import PhaseClock, PhaseRun

if TYPE_CHECKING:
    from lightning_iterppo.settings import LoopSettings

ITERATION = ("collect", "evaluate", "improve")
"""The phases every iteration has, in order."""

_ENOUGH = 0.1
"""The fraction of a phase that must be done before the rest is judged by it: the first batches are the slowest."""


def time_left(clock: PhaseClock, settings: LoopSettings, last_iteration: bool = False) -> float | None:
    """Seconds until the end of the run, or None as long as a phase that is still to come has never been seen.

    A phase that has been finished before is taken to last as long as it did on average; one that runs for the first
    time is judged by the part of it that is done; conversations that are still to be measured are judged by the pace of
    those before. In the first iteration there is therefore no estimate until its improvement is under way.

    Args:
        clock: what has been seen of the run.
        settings: the loop's settings.
        last_iteration: whether the running iteration will be the last although more were asked for.
    """
    run = clock.running
    if run is None:
        return None
    if run.phase == "done":
        return 0.0

    if run.phase == "score":  # nothing comes after it
        whole = _whole(clock, run, settings)
        return None if whole is None else max(0.0, whole - (clock.now - run.started))
    iterations = run.iteration + 1 if last_iteration else settings.iterations
    full = {phase: _duration(clock, settings, phase) for phase in ITERATION}
    parts: list[float | None] = []
    if run.phase in ITERATION:
        whole = _whole(clock, run, settings)
        full[run.phase] = whole if full[run.phase] is None else full[run.phase]
        parts.append(None if whole is None else max(0.0, whole - (clock.now - run.started)))
        parts += [full[phase] for phase in ITERATION[ITERATION.index(run.phase) + 1 :]]
    elif run.phase not in ("before", "after"):
        whole = _whole(clock, run, settings)
        parts.append(None if whole is None else max(0.0, whole - (clock.now - run.started)))
    for phase in ITERATION:
        parts.append(_times(full[phase], iterations - _first_to_come(run)))
    parts.append(_measuring(clock, run, settings, iterations))

    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None


def _first_to_come(run: PhaseRun) -> int:
    """The first iteration that has not begun."""
    return run.iteration + 1 if run.phase in (*ITERATION, "after") else 0


def _times(seconds: float | None, count: int) -> float | None:
    if count <= 0:
        return 0.0
    return None if seconds is None else seconds * count


def _measuring(clock: PhaseClock, run: PhaseRun, settings: LoopSettings, iterations: int) -> float | None:
    """How long the measurements of the outcome rate that are not done will take, that of the running phase included."""
    every = settings.evaluate_every
    first = run.iteration if run.phase in (*ITERATION, "after") else 0
    both = settings.evaluation_conversations + settings.held_out_conversations
    count = both  # after the training
    count += settings.evaluation_conversations * sum((i + 1) % every == 0 for i in range(first, iterations) if every)
    if run.phase in ("start", "logs", "warm-start", "before"):
        count += both
    paces = [clock.seconds_per_conversation.get(phase) for phase in ("after", "before", "collect")]
    since = 0.0
    if run.phase in ("before", "after"):
        count -= run.measured + run.done
        since = clock.now - run.seen
        if run.conversations_per_second and run.done >= _ENOUGH * run.total:
            paces.insert(0, 1 / run.conversations_per_second)
    pace = next((pace for pace in paces if pace is not None), None)
    left = _times(pace, count)
    return None if left is None else max(0.0, left - since)


def _duration(clock: PhaseClock, settings: LoopSettings, phase: str) -> float | None:
    """How long a phase takes that is not running."""
    finished = clock.durations.get(phase)
    if finished:
        return fmean(finished)
    pace = clock.seconds_per_conversation.get("before")
    return pace * settings.conversations if phase == "collect" and pace is not None else None


def _whole(clock: PhaseClock, run: PhaseRun, settings: LoopSettings) -> float | None:
    """How long the running phase will have taken in the end."""
    elapsed = clock.now - run.started
    expected = _duration(clock, settings, run.phase)
    finished_before = run.phase in clock.durations
    if finished_before and expected is not None and elapsed <= expected:
        return expected
    # A round's samples, scores and batches are counted one after the other, so only whole rounds say how far it is.
    if run.phase == "improve" and settings.rounds > 1:
        if run.round > 0:
            return max(elapsed, (run.round_started - run.started) / run.round * settings.rounds)
    elif run.total > 0 and not run.restarted and run.done / run.total >= _ENOUGH:
        return run.seconds * run.total / run.done
    return max(expected, elapsed) if expected is not None else None
