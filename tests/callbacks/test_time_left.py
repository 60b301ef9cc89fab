"""The estimate of the time left: right where the past says it, and None where it does not."""

from __future__ import annotations

from typing import Any

import pytest

from lightning_iterppo.callbacks.phase_clock import PhaseClock
from lightning_iterppo.callbacks.time_left import time_left

# The fake loop: 3 iterations of 100 conversations, 200 to measure before and after, 2 rounds.
BEFORE, COLLECT, EVALUATE, IMPROVE = 40.0, 20.0, 10.0, 30.0
ITERATION = COLLECT + EVALUATE + IMPROVE


class Run:
    """Takes a clock through the phases of a run."""

    def __init__(self, loop: Any, time: Any) -> None:
        self.loop, self.time, self.clock = loop, time, PhaseClock(time)
        self.clock.begin()

    def at(self, seconds: float, phase: str, **progress: Any) -> float | None:
        self.time.time += seconds
        self.loop.move(phase, **progress)
        self.clock.observe(self.loop.progress)
        return self.left()

    def left(self) -> float | None:
        return time_left(self.clock, self.loop.settings, last_iteration=self.loop.should_stop)

    def whole(self, phase: str, seconds: float, iteration: int = 0, **progress: Any) -> None:
        self.at(0, phase, iteration=iteration, unit=progress.get("unit", ""))
        self.at(seconds, phase, iteration=iteration, **progress)

    def before(self) -> None:
        self.whole("before", BEFORE, done=200, total=200, unit="conversations")

    def iteration(self, number: int) -> None:
        self.whole("collect", COLLECT, number, done=100, total=100, unit="conversations")
        self.whole("evaluate", EVALUATE, number)
        self.at(0, "improve", iteration=number)
        self.at(IMPROVE / 2, "improve", iteration=number, round=1)
        self.at(IMPROVE / 2, "improve", iteration=number, round=1)


@pytest.fixture
def run(loop: Any, time: Any) -> Run:
    return Run(loop, time)


def test_unknown_until_every_phase_has_been_seen(run: Run) -> None:
    assert run.left() is None
    run.before()
    assert run.left() is None
    assert run.at(10, "collect", done=50, total=100, unit="conversations") is None
    assert run.at(10, "evaluate", done=5, total=10, unit="batches") is None
    assert run.at(1, "improve", done=5, total=10, unit="responses") is None


def test_known_after_the_first_round_of_the_first_improvement(run: Run) -> None:
    run.before()
    run.whole("collect", COLLECT, done=100, total=100, unit="conversations")
    run.whole("evaluate", EVALUATE)
    run.at(0, "improve", round=0)
    left = run.at(IMPROVE / 2, "improve", round=1)
    assert left == pytest.approx(IMPROVE / 2 + 2 * ITERATION + BEFORE)


def test_a_finished_iteration_says_how_long_the_others_take(run: Run) -> None:
    run.before()
    run.iteration(0)
    assert run.at(0, "collect", iteration=1) == pytest.approx(2 * ITERATION + BEFORE)
    assert run.at(5, "collect", iteration=1) == pytest.approx(2 * ITERATION + BEFORE - 5)


def test_time_passing_without_progress_lowers_the_estimate(run: Run) -> None:
    run.before()
    run.iteration(0)
    first = run.at(0, "collect", iteration=1)
    run.time.time += 7
    second = run.left()
    assert first is not None
    assert second == pytest.approx(first - 7)


def test_an_overdue_phase_is_judged_by_what_it_has_done(run: Run) -> None:
    run.before()
    run.iteration(0)
    run.at(0, "collect", iteration=1)
    left = run.at(2 * COLLECT, "collect", iteration=1, done=50, total=100, unit="conversations")
    assert left == pytest.approx(2 * COLLECT + EVALUATE + IMPROVE + ITERATION + BEFORE)


def test_a_restarted_count_is_no_fraction(run: Run) -> None:
    run.before()
    run.iteration(0)
    run.at(0, "evaluate", iteration=1)
    run.at(5, "evaluate", iteration=1, done=9, total=10, unit="batches")
    left = run.at(10, "evaluate", iteration=1, done=5, total=10, unit="batches")
    assert left == pytest.approx(0 + IMPROVE + ITERATION + BEFORE)


def test_the_last_iteration_is_followed_by_the_measurement_only(run: Run) -> None:
    run.before()
    for number in range(3):
        run.iteration(number)
    assert run.left() == pytest.approx(BEFORE)
    assert run.at(0, "after", iteration=2) == pytest.approx(BEFORE)
    assert run.at(10, "after", iteration=2, done=100, total=200, unit="conversations") == pytest.approx(10)
    run.time.time += 4
    assert run.left() == pytest.approx(6)
    assert run.at(5, "done") == 0


def test_a_loop_that_will_stop_has_no_iterations_left(run: Run) -> None:
    run.before()
    run.iteration(0)
    run.loop.should_stop = True
    assert run.left() == pytest.approx(BEFORE)


def test_without_measurements_none_are_expected(run: Run) -> None:
    run.loop.settings.evaluation_conversations = 0
    run.iteration(0)
    assert run.at(0, "collect", iteration=1) == pytest.approx(2 * ITERATION)


def test_without_a_measurement_before_the_one_after_is_judged_by_collecting(run: Run) -> None:
    run.iteration(0)
    assert run.at(0, "collect", iteration=2) == pytest.approx(ITERATION + 200 * COLLECT / 100)


def test_measurements_between_iterations_are_counted(run: Run) -> None:
    run.loop.settings.evaluate_every = 1
    run.before()
    run.iteration(0)
    # Still to come: the measurements after each of the three iterations, and the final one.
    assert run.left() == pytest.approx(2 * ITERATION + 4 * BEFORE)
    assert run.at(0, "after", iteration=0) == pytest.approx(2 * ITERATION + 4 * BEFORE)
    assert run.at(BEFORE, "after", iteration=0, done=200, total=200, unit="conversations") == pytest.approx(
        2 * ITERATION + 3 * BEFORE
    )


def test_nothing_comes_after_scoring(run: Run) -> None:
    assert run.at(0, "score", total=1000, unit="conversations") is None
    assert run.at(20, "score", done=200, total=1000, unit="conversations") == pytest.approx(80)


def test_a_last_iteration_s_measurement_is_followed_by_the_final_one(run: Run) -> None:
    run.loop.settings.evaluate_every = 3
    run.before()
    for number in range(3):
        run.iteration(number)
    assert run.left() == pytest.approx(2 * BEFORE)
    run.whole("after", BEFORE, 2, done=200, total=200, unit="conversations")
    assert run.left() == pytest.approx(BEFORE)
    run.whole("after", BEFORE / 2, 2, done=100, total=200, unit="conversations")
    assert run.left() == pytest.approx(BEFORE / 2)


def test_the_second_kind_of_customer_is_counted(run: Run) -> None:
    run.loop.settings.held_out_conversations = 100
    run.before()
    run.whole("before", BEFORE / 2, done=100, total=100, unit="conversations")
    run.iteration(0)
    assert run.left() == pytest.approx(2 * ITERATION + 1.5 * BEFORE)
    run.loop.should_stop = True
    run.whole("after", BEFORE, done=200, total=200, unit="conversations")
    assert run.left() == pytest.approx(BEFORE / 2)
