"""PhaseClock: durations, speeds, and noticing that a count began anew."""

from __future__ import annotations

from typing import Any

import pytest

from lightning_iterppo.callbacks.phase_clock import PhaseClock


def watch(clock: PhaseClock, time: Any, loop: Any, seconds: float, phase: str, **progress: Any) -> bool:
    time.time += seconds
    loop.move(phase, **progress)
    return clock.observe(loop.progress)


def test_a_phase_lasts_from_the_last_look_at_the_one_before(loop: Any, time: Any) -> None:
    clock = PhaseClock(time)
    clock.begin()
    watch(clock, time, loop, 1, "start")
    watch(clock, time, loop, 5, "collect", done=1, total=4, unit="conversations", tokens=50)
    watch(clock, time, loop, 15, "collect", done=4, total=4, unit="conversations", tokens=200)
    assert clock.running is not None
    assert clock.running.tokens_per_second == 10
    assert clock.running.conversations_per_second == 0.2
    watch(clock, time, loop, 3, "evaluate")
    assert clock.durations == {"start": [1], "collect": [20]}
    assert clock.seconds_per_conversation == {"collect": 5}


def test_it_says_when_the_phase_or_the_iteration_changes(loop: Any, time: Any) -> None:
    clock = PhaseClock(time)
    steps = [("collect", 0), ("collect", 0), ("evaluate", 0), ("evaluate", 1), ("evaluate", 1)]
    changes = [watch(clock, time, loop, 1, phase, iteration=iteration) for phase, iteration in steps]
    assert changes == [True, False, True, True, False]


def test_nothing_counted_is_no_speed_rather_than_zero(loop: Any, time: Any) -> None:
    clock = PhaseClock(time)
    watch(clock, time, loop, 1, "evaluate", done=3, total=9, unit="batches")
    watch(clock, time, loop, 1, "evaluate", done=5, total=9, unit="batches")
    assert clock.running is not None
    assert clock.running.tokens_per_second is None
    assert clock.running.conversations_per_second is None


@pytest.mark.parametrize(
    ("second", "restarted"),
    [
        ({"done": 3, "unit": "responses"}, False),
        ({"done": 0, "unit": "responses"}, True),
        ({"done": 3, "unit": "batches"}, True),
    ],
    ids=["goes on", "begins anew", "counts something else"],
)
def test_a_count_that_begins_anew_is_noticed(loop: Any, time: Any, second: dict[str, Any], restarted: bool) -> None:
    clock = PhaseClock(time)
    watch(clock, time, loop, 1, "improve", done=2, total=9, unit="responses")
    watch(clock, time, loop, 1, "improve", total=9, **second)
    assert clock.running is not None
    assert clock.running.restarted is restarted


def test_a_phase_begun_once_more_is_another_one(loop: Any, time: Any) -> None:
    clock = PhaseClock(time)
    clock.begin()
    watch(clock, time, loop, 10, "before", done=5, total=5, unit="conversations", tokens=90)
    assert watch(clock, time, loop, 0, "before", done=0, total=2, unit="conversations", tokens=0)
    watch(clock, time, loop, 10, "before", done=2, total=2, unit="conversations", tokens=40)
    assert clock.running is not None
    assert (clock.running.tokens_per_second, clock.running.conversations_per_second) == (4, 0.2)
    assert clock.running.measured == 5
    assert clock.durations == {"before": [10]}


def test_time_between_two_runs_is_not_counted(loop: Any, time: Any) -> None:
    clock = PhaseClock(time)
    clock.begin()
    watch(clock, time, loop, 10, "collect")
    watch(clock, time, loop, 20, "evaluate")
    state = clock.state_dict()
    time.time += 1_000_000
    resumed = PhaseClock(time)
    resumed.load_state_dict(state)
    resumed.begin()
    time.time += 5
    assert resumed.elapsed == 35
    assert resumed.durations == {"collect": [10]}
