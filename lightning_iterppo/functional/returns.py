"""Returns over the turns of a conversation."""

from __future__ import annotations

from collections.abc import Sequence


def lambda_returns(
    returns: Sequence[float],
    values: Sequence[float],
    *,
    gamma: float,
    lam: float,
    traces: Sequence[float] | None = None,
) -> list[float]:
    """λ-returns: G_t = r_t + γ ((1 - λ) V_{t+1} + λ G_{t+1}), with V or Q of the next turn (Sutton, Barto 2018, 12.3).

    Bootstrapping from the next turn's value leaves out the luck of all turns after it, at the price of that value's
    error.

    Args:
        returns: the Monte Carlo return of each turn, which the rewards are taken from.
        values: V of each turn's state, or Q of its action: 0 after the last.
        gamma: discount from turn to turn.
        lam: λ; 1 gives ``returns``, 0 the reward and the next turn's value alone.
        traces: a factor on λ for each turn: how far what came from that turn's action on is to be believed; None is 1.
    """
    found: list[float] = []
    following = target = value = 0.0
    trace = 1.0
    for index in reversed(range(len(returns))):
        reward = returns[index] - gamma * following
        ahead = (1 - lam * trace) * value + lam * trace * target if found else 0.0
        target = reward + gamma * ahead
        following, value = returns[index], values[index]
        trace = 1.0 if traces is None else traces[index]
        found.append(target)
    return found[::-1]
