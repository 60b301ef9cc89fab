"""Outcome rates with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lightning_iterppo.conversation import Conversation
from lightning_iterppo.summary import Rate

_Z95 = 1.959963984540054  # the normal distribution's 97.5 % point


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion (Wilson 1927): right near 0 and 1 too, where the normal one is not.

    Raises:
        ValueError: there was no trial.
    """
    if trials <= 0:
        raise ValueError("a proportion of nothing has no interval")
    share = successes / trials
    scale = 1 + _Z95**2 / trials
    centre = (share + _Z95**2 / (2 * trials)) / scale
    half = _Z95 * math.sqrt(share * (1 - share) / trials + _Z95**2 / (4 * trials**2)) / scale
    # The ends that are exactly 0 and 1 in theory: rounding must not put the share itself outside.
    low = 0.0 if successes == 0 else centre - half
    return low, 1.0 if successes == trials else centre + half


def outcome_rate(conversations: Sequence[Conversation]) -> Rate:
    """The share of conversations with an outcome above 0; unknown outcomes are not counted.

    Raises:
        ValueError: no conversation has a known outcome.
    """
    outcomes = [c.outcome for c in conversations if c.outcome is not None]
    if not outcomes:
        raise ValueError("no conversation has a known outcome")
    return counted_rate(sum(outcome > 0 for outcome in outcomes), len(outcomes), sum(outcomes))


def counted_rate(successes: int, conversations: int, total: float) -> Rate:
    """The same from counts: of conversations with a known outcome, those above 0 and all, and the sum of the outcomes.

    Raises:
        ValueError: there is none.
    """
    return Rate(
        outcome_rate=successes / max(conversations, 1),
        ci95=wilson_interval(successes, conversations),
        conversations=conversations,
        return_mean=total / conversations,
    )


def known_rate(conversations: Sequence[Conversation]) -> Rate | None:
    """The same, or None where no outcome is known."""
    return outcome_rate(conversations) if any(c.outcome is not None for c in conversations) else None
