"""StopAtOutcome: which rate it looks at, when it stops the loop, and what it says."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_iterppo.callbacks import StopAtOutcome


def stopped_at(callback: StopAtOutcome, loop: Any, rates: Iterable[float | None], held_out: bool = True) -> int | None:
    """Runs the iterations and gives the one after which the loop would end."""
    loop.settings.evaluate_every = 1 if held_out else 0
    for iteration, rate in enumerate(rates):
        if held_out:
            loop.finish_iteration(iteration, collected=0.0, held_out=rate)
        else:
            loop.finish_iteration(iteration, collected=rate)
        callback.on_iteration_end(loop)
        if loop.should_stop:
            return iteration
    return None


def test_stops_when_the_held_out_rate_reaches_the_target(loop: Any) -> None:
    assert stopped_at(StopAtOutcome(target=0.5), loop, [0.3, 0.49, 0.5, 0.6]) == 2
    assert loop.stop_reason == "the outcome rate 50.0% has reached the target 50.0%"


def test_a_high_collected_rate_does_not_count_while_rates_are_held_out(loop: Any) -> None:
    loop.settings.evaluate_every = 2
    loop.finish_iteration(0, collected=0.9)
    StopAtOutcome(target=0.5).on_iteration_end(loop)
    assert not loop.should_stop


def test_the_collected_rate_counts_when_nothing_is_held_out(loop: Any) -> None:
    assert stopped_at(StopAtOutcome(target=0.5), loop, [0.3, 0.55], held_out=False) == 1


def test_patience_counts_iterations_since_the_best(loop: Any) -> None:
    assert stopped_at(StopAtOutcome(patience=2), loop, [0.3, 0.4, 0.4, 0.35, 0.9]) == 3
    assert loop.stop_reason == "the outcome rate has not improved on 40.0% for 2 iterations"


def test_an_improvement_in_time_starts_the_patience_anew(loop: Any) -> None:
    assert stopped_at(StopAtOutcome(patience=2), loop, [0.3, 0.2, 0.4, 0.3, 0.5]) is None


def test_small_gains_below_min_delta_are_none(loop: Any) -> None:
    assert stopped_at(StopAtOutcome(patience=2, min_delta=0.05), loop, [0.3, 0.32, 0.34, 0.5]) == 2


def test_the_rate_before_training_is_the_first_to_beat(loop: Any, rate: Callable[..., Any]) -> None:
    loop.summary.before = rate(0.6)
    assert stopped_at(StopAtOutcome(patience=1), loop, [0.5, 0.9]) == 0


def test_iterations_without_a_measurement_are_passed_over(loop: Any) -> None:
    assert stopped_at(StopAtOutcome(patience=2), loop, [0.3, None, None, None, 0.2]) == 4


def test_a_resumed_run_remembers_the_best(loop: Any) -> None:
    first = StopAtOutcome(patience=2)
    stopped_at(first, loop, [0.5, 0.4])
    resumed = StopAtOutcome(patience=2)
    resumed.load_state_dict(first.state_dict())
    loop.finish_iteration(2, held_out=0.45)
    resumed.on_iteration_end(loop)
    assert loop.should_stop


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "neither"),
        ({"target": 80}, "80 % is 0.8"),
        ({"target": 0.0}, "target"),
        ({"patience": 0}, "patience"),
        ({"patience": 1.5}, "patience"),
        ({"patience": 1, "min_delta": -0.1}, "min_delta"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        StopAtOutcome(**arguments)
