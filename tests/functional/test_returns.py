"""TD(λ) targets against their definition."""

from __future__ import annotations

import pytest

from lightning_iterppo.functional.returns import lambda_returns

REWARDS, VALUES, GAMMA = [0.0, 0.25, 0.5], [0.9, 0.6, 0.3], 0.5
RETURNS = [0.25, 0.5, 0.5]


def test_lambda_of_one_is_the_monte_carlo_return() -> None:
    assert lambda_returns(RETURNS, VALUES, gamma=GAMMA, lam=1.0) == pytest.approx(RETURNS)


def test_lambda_of_zero_is_the_reward_and_the_next_value() -> None:
    expected = [0.0 + GAMMA * 0.6, 0.25 + GAMMA * 0.3, 0.5]
    assert lambda_returns(RETURNS, VALUES, gamma=GAMMA, lam=0.0) == pytest.approx(expected)


def test_in_between_it_is_the_weighted_sum_of_n_step_returns() -> None:
    lam = 0.7
    one = REWARDS[0] + GAMMA * VALUES[1]
    two = REWARDS[0] + GAMMA * REWARDS[1] + GAMMA**2 * VALUES[2]
    expected = (1 - lam) * one + (1 - lam) * lam * two + lam**2 * RETURNS[0]
    assert lambda_returns(RETURNS, VALUES, gamma=GAMMA, lam=lam)[0] == pytest.approx(expected)


def test_a_trace_cuts_what_came_after_a_turn() -> None:
    # What the second turn's action led to is believed by half, what the third's did not at all.
    found = lambda_returns(RETURNS, VALUES, gamma=GAMMA, lam=0.8, traces=[0.1, 0.5, 0.0])
    second = REWARDS[1] + GAMMA * VALUES[2]
    assert found == pytest.approx([REWARDS[0] + GAMMA * (0.6 * VALUES[1] + 0.4 * second), second, REWARDS[2]])
