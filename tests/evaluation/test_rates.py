"""Outcome rates and Wilson's interval."""

from __future__ import annotations

import pytest

from lightning_iterppo.conversation import Conversation, Turn
from lightning_iterppo.evaluation.rates import outcome_rate, wilson_interval


def ended(outcome: float | None) -> Conversation:
    return Conversation("c", (Turn("hi", "yo"),), outcome=outcome)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [  # Newcombe (1998), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0000),
    ],
)
def test_wilsons_interval(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=6e-5)


def test_the_share_is_inside_its_interval() -> None:
    for trials in range(1, 200):
        for successes in {0, 1, trials - 1, trials}:
            low, high = wilson_interval(successes, trials)
            assert 0 <= low <= successes / trials <= high <= 1


def test_unknown_outcomes_are_not_counted() -> None:
    rate = outcome_rate([ended(1.0), ended(None), ended(0.0), ended(3.0), ended(-1.0)])
    assert (rate.outcome_rate, rate.conversations, rate.return_mean) == (0.5, 4, 0.75)
    assert rate.ci95 == wilson_interval(2, 4)


def test_a_rate_of_nothing() -> None:
    with pytest.raises(ValueError, match="known outcome"):
        outcome_rate([ended(None)])
    with pytest.raises(ValueError, match="no interval"):
        wilson_interval(0, 0)
