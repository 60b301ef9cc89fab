"""AdaptiveKL: the controller's step, its bounds, and what survives a resume."""

from __future__ import annotations

import math
from typing import Any

import pytest
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_iterppo.callbacks import AdaptiveKL


def improve(callback: AdaptiveKL, loop: Any, kl: float | None) -> float:
    if kl is None:
        loop.metrics.pop("policy/kl_old", None)
    else:
        loop.metrics["policy/kl_old"] = kl
    callback.on_improve_end(loop)
    return float(loop.policy.kl_coefficient)


@pytest.mark.parametrize(
    ("kl", "factor"),
    [(0.1, 1.0), (0.12, 1.2), (0.09, 0.9), (5.0, 1.5), (0.0, 0.5), (-0.01, 0.5)],
    ids=["on target", "above", "below", "far above is clipped", "far below is clipped", "a negative estimate"],
)
def test_one_step_follows_the_formula(loop: Any, kl: float, factor: float) -> None:
    assert improve(AdaptiveKL(target=0.1), loop, kl) == pytest.approx(0.1 * factor)


def test_the_paper_s_setting_moves_two_percent_at_most(loop: Any) -> None:
    assert improve(AdaptiveKL(target=0.1, gain=0.1, error_clip=0.2), loop, 9.0) == pytest.approx(0.102)


def test_the_coefficient_stays_within_its_bounds(loop: Any) -> None:
    callback = AdaptiveKL(target=0.1, minimum=0.05, maximum=0.3)
    assert [improve(callback, loop, 9.0) for _ in range(4)][-1] == 0.3
    assert [improve(callback, loop, 0.0) for _ in range(4)][-1] == 0.05


def test_from_zero_it_starts_at_the_minimum(loop: Any) -> None:
    loop.policy.kl_coefficient = 0.0
    assert improve(AdaptiveKL(target=0.1, minimum=0.01), loop, 9.0) == 0.01


@pytest.mark.parametrize("kl", [None, math.nan, math.inf])
def test_without_a_usable_kl_nothing_moves(loop: Any, kl: float | None) -> None:
    assert improve(AdaptiveKL(target=0.1), loop, kl) == 0.1


def test_the_coefficient_is_among_the_metrics(loop: Any) -> None:
    improve(AdaptiveKL(target=0.1), loop, 0.12)
    assert loop.metrics["policy/kl_coefficient"] == pytest.approx(0.12)


@pytest.mark.parametrize("hook", ["on_run_start", "on_iteration_start"])
def test_a_resumed_run_goes_on_with_the_adapted_coefficient(loop: Any, hook: str) -> None:
    first = AdaptiveKL(target=0.1)
    improve(first, loop, 0.12)
    resumed = AdaptiveKL(target=0.1)
    resumed.load_state_dict(first.state_dict())
    loop.policy.kl_coefficient = 0.1  # as the recipe says
    getattr(resumed, hook)(loop)
    assert loop.policy.kl_coefficient == pytest.approx(0.12)


def test_before_the_first_improvement_the_recipe_s_coefficient_stands(loop: Any) -> None:
    callback = AdaptiveKL(target=0.1)
    callback.on_run_start(loop)
    callback.on_iteration_start(loop)
    assert loop.policy.kl_coefficient == 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": 0}, "target"),
        ({"target": math.nan}, "target"),
        ({"target": "0.1"}, "target"),
        ({"target": 0.1, "gain": -1}, "gain"),
        ({"target": 0.1, "gain": 2.0}, "gain · error_clip must be below 1"),
        ({"target": 0.1, "minimum": 0}, "minimum"),
        ({"target": 0.1, "minimum": 2, "maximum": 1}, "minimum 2 is greater than maximum 1"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        AdaptiveKL(**arguments)
