"""Fitted-Q evaluation with a linear Q on given features: the mathematics, with no model in it.

Q(s, a) = w · φ(s, a) is fitted to r + γ V(s'), with V(s) = E_π[Q(s, a)] = w · E_π[φ(s, a)], again and again (Le,
Voloshin and Yue 2019, algorithm 3). For a linear Q every step is one least-squares problem with the same matrix, and a
conversation of T turns needs T steps: after k steps Q is right for all states that are at most k turns from the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from lightning_iterppo.evaluation.off_policy import Array, Estimate

_Z95 = 1.959963984540054
FOLDS = 5


@dataclass(frozen=True)
class FeatureTurns:
    """Turns of n conversations, those of one conversation side by side and in order; N turns in all.

    Args:
        done: features of what was done, (N, width).
        expected: mean features of what the policy would do in the same state, (N, width); those of what was done where
            the agent did not choose.
        rewards: (N,).
        conversations: which conversation each turn is of, from 0 to n - 1, (N,).
    """

    done: Array
    expected: Array
    rewards: Array
    conversations: NDArray[np.int64]

    @cached_property
    def first(self) -> NDArray[np.bool_]:
        """Whether a turn opens its conversation, (N,)."""
        return np.concatenate([[True], self.conversations[1:] != self.conversations[:-1]])

    @cached_property
    def places(self) -> NDArray[np.int64]:
        """Which turn of its conversation it is, from 0, (N,)."""
        starts = np.flatnonzero(self.first)
        found: NDArray[np.int64] = np.arange(len(self.rewards)) - np.repeat(starts, np.diff([*starts, len(self.first)]))
        return found

    @cached_property
    def inputs(self) -> tuple[Array, Array, Array]:
        """Features of what was done, of what is expected, and expected of the next turn, with a constant; 0 at ends."""
        one = np.ones((len(self.rewards), 1))
        done, expected = np.hstack([self.done, one]), np.hstack([self.expected, one])
        following = np.zeros_like(expected)
        following[:-1] = np.where(self.first[1:, None], 0.0, expected[1:])
        return done, expected, following


def fit(turns: FeatureTurns, counts: Array, *, gamma: float, prior: float) -> Array:
    """The weights of Q, (width + 1,), the last one of the constant.

    Args:
        turns: what was observed.
        counts: how often each conversation counts, (n,).
        gamma: discount a turn.
        prior: precision of a normal prior on the weights but the constant's, in units of the errors' precision.
    """
    done, _, following = turns.inputs
    used = counts[turns.conversations] > 0
    weighted = done[used] * counts[turns.conversations[used], None]
    matrix = weighted.T @ done[used]
    places = np.arange(len(matrix) - 1)
    matrix[places, places] += prior
    known = np.column_stack([weighted.T @ following[used], weighted.T @ turns.rewards[used]])
    solved = np.linalg.solve(matrix, known)
    step, weights = gamma * solved[:, :-1], solved[:, -1].copy()
    for _ in range(int(turns.places.max())):
        weights = solved[:, -1] + step @ weights
    found: Array = weights
    return found


def cross_fitted(turns: FeatureTurns, *, gamma: float, prior: float, seed: int) -> tuple[Array, Array]:
    """Q of what was done and V of every state, both (n, T), each conversation's from a fit without it; 0 at ends."""
    n, longest = int(turns.conversations.max()) + 1, int(turns.places.max()) + 1
    fold = np.random.default_rng(seed).permutation(n) % min(FOLDS, n)
    done, expected, _ = turns.inputs
    q, v = np.zeros((n, longest)), np.zeros((n, longest))
    for each in range(min(FOLDS, n)):
        weights = fit(turns, (fold != each).astype(np.float64), gamma=gamma, prior=prior)
        own = fold[turns.conversations] == each
        at = turns.conversations[own], turns.places[own]
        q[at], v[at] = done[own] @ weights, expected[own] @ weights
    return q, v


def values(turns: FeatureTurns, counts: Array, *, gamma: float, prior: float) -> Array:
    """The mean of V in the first states, for each sample of conversations: (samples, n) to (samples,)."""
    _, expected, _ = turns.inputs
    starts = expected[turns.first]  # (n, width + 1)
    found: Array = np.array(
        [(row @ starts) / row.sum() @ fit(turns, row, gamma=gamma, prior=prior) for row in counts], dtype=np.float64
    )
    return found


def fitted_q(turns: FeatureTurns, counts: Array, *, gamma: float, prior: float) -> tuple[Estimate, Array]:
    """Fitted-Q evaluation, with the bootstrap of conversations and Q fitted anew to each sample (Hao et al. 2021).

    The interval is the value plus and minus 1.96 standard deviations of the bootstrap. A prior draws Q of what was
    rarely done towards the mean, in every bootstrap sample once more: their percentiles would count that bias twice.
    What the interval does not know of is that Q may not be linear in the features.

    Args:
        turns: what was observed.
        counts: bootstrap samples, (samples, n).
        gamma: discount a turn.
        prior: see `fit`.

    Returns:
        The estimate, and the value in each bootstrap sample (samples,).
    """
    value = float(values(turns, np.ones((1, counts.shape[1])), gamma=gamma, prior=prior)[0])
    sampled = values(turns, counts, gamma=gamma, prior=prior)
    half = _Z95 * float(sampled.std())
    return Estimate(value, (value - half, value + half)), sampled
