"""Fitted-Q evaluation with a linear Q on given features: the mathematics, with no model in it.

Every turn has a map of its own: Q_t(s, a) = w_t · φ(s, a) is fitted to r + γ V_{t+1}(s'), with V_t(s) =
E_π[Q_t(s, a)] = w_t · E_π[φ(s, a)], from the last turn back (Le, Voloshin and Yue 2019, algorithm 3, with as many steps
as there are turns; for finite horizons Duan, Jia and Wang 2020, "Minimax-optimal off-policy evaluation with linear
function approximation"). One map for all turns would have to say the same of the first message and of the last one, and
is not done after as many steps: what it learns of one turn it at once believes of all others.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lightning_iterppo.evaluation.off_policy import Array, Estimate

_Z95 = 1.959963984540054
FOLDS = 5
#: Precisions of the prior on Q's weights that `choose_prior` compares.
PRIORS: Final = (0.1, 1.0, 10.0, 100.0, 1000.0, 10_000.0)
#: How much less than the best of them it takes.
UNDERSMOOTHED: Final = 0.01


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
    def inputs(self) -> tuple[Array, Array]:
        """Features of what was done, and of what is expected, with a constant."""
        one = np.ones((len(self.rewards), 1))
        return np.hstack([self.done, one]), np.hstack([self.expected, one])

    @cached_property
    def at(self) -> list[NDArray[np.int64]]:
        """The rows of the first turns, of the second ones, and so on."""
        return [np.flatnonzero(self.places == place) for place in range(int(self.places.max()) + 1)]

    @cached_property
    def goes_on(self) -> NDArray[np.bool_]:
        """Whether the next row is the conversation's next turn, (N,)."""
        return np.append(~self.first[1:], False)


def fit(turns: FeatureTurns, counts: Array, *, gamma: float, prior: float) -> Array:
    """The weights of Q of every turn, (T, width + 1), the last one of the constant.

    A turn that nothing counts of, because no conversation that counts is so long, has those of the turn before it.

    Args:
        turns: what was observed.
        counts: how often each conversation counts, (n,).
        gamma: discount a turn.
        prior: precision of a normal prior on the weights but the constants', in units of the errors' precision.
    """
    _, expected = turns.inputs
    targets = turns.rewards.astype(np.float64)
    weights = np.zeros((len(turns.at), expected.shape[1]))
    times = counts[turns.conversations]
    last = -1
    for place in reversed(range(len(turns.at))):
        rows = turns.at[place]
        rows = rows[times[rows] > 0]
        if not len(rows):
            continue
        last = max(last, place)
        weights[place] = _ridge(turns, rows, times, targets, prior)
        if place:
            before = turns.at[place] - 1
            targets[before] += gamma * expected[turns.at[place]] @ weights[place]
    weights[last + 1 :] = weights[last]
    return weights


def _ridge(turns: FeatureTurns, rows: NDArray[np.int64], times: Array, targets: Array, prior: float) -> Array:
    done = turns.inputs[0][rows]
    weighted = done * times[rows, None]
    matrix = weighted.T @ done
    places = np.arange(len(matrix) - 1)
    matrix[places, places] += prior
    found: Array = np.linalg.solve(matrix, weighted.T @ targets[rows])
    return found


def _folds(turns: FeatureTurns, seed: int) -> tuple[NDArray[np.int64], int]:
    """Which part each conversation is held out with, and how many parts there are."""
    n = int(turns.conversations.max()) + 1
    count = min(FOLDS, n)
    found: NDArray[np.int64] = np.random.default_rng(seed).permutation(n) % count
    return found, count


def choose_prior(turns: FeatureTurns, *, gamma: float, seed: int) -> float:
    """The precision of the prior on Q's weights: a hundredth of what predicts best.

    Best is the one of `PRIORS` with which the returns that were seen are predicted best, in conversations left out.
    These are the returns of the policy that made the logs: what is chosen does not depend on the policy in question, so
    that two policies are compared with the same. It is far too much for a policy's value. That is a mean over all first
    states, in which the noise of the weights averages out and what the prior takes away from every Q does not; the
    interval knows of noise, and of no bias.

    Args:
        turns: what was observed.
        gamma: discount a turn.
        seed: which conversations are left out together.
    """
    returns = turns.rewards.astype(np.float64)
    for row in reversed(range(len(returns) - 1)):
        if turns.goes_on[row]:
            returns[row] += gamma * returns[row + 1]
    fold, count = _folds(turns, seed)
    errors = dict.fromkeys(PRIORS, 0.0)
    every = np.ones(len(returns))
    for each, rows in itertools.product(range(count), turns.at):
        held = fold[turns.conversations[rows]] == each
        if held.all() or not held.any():
            continue
        for prior in PRIORS:
            weights = _ridge(turns, rows[~held], every, returns, prior)
            errors[prior] += float(np.square(turns.inputs[0][rows[held]] @ weights - returns[rows[held]]).sum())
    return UNDERSMOOTHED * min(PRIORS, key=lambda prior: errors[prior])


def cross_fitted(turns: FeatureTurns, *, gamma: float, prior: float, seed: int) -> tuple[Array, Array]:
    """Q of what was done and V of every state, both (n, T), each conversation's from a fit without it; 0 at ends."""
    fold, count = _folds(turns, seed)
    done, expected = turns.inputs
    q, v = np.zeros((len(fold), len(turns.at))), np.zeros((len(fold), len(turns.at)))
    for each in range(count):
        weights = fit(turns, (fold != each).astype(np.float64), gamma=gamma, prior=prior)
        own = np.flatnonzero(fold[turns.conversations] == each)
        places = turns.places[own]
        at = turns.conversations[own], places
        q[at], v[at] = (done[own] * weights[places]).sum(1), (expected[own] * weights[places]).sum(1)
    return q, v


def values(turns: FeatureTurns, counts: Array, *, gamma: float, prior: float) -> Array:
    """The mean of V in the first states, for each sample of conversations: (samples, n) to (samples,)."""
    starts = turns.inputs[1][turns.first]  # (n, width + 1)
    found: Array = np.array(
        [(row @ starts) / row.sum() @ fit(turns, row, gamma=gamma, prior=prior)[0] for row in counts], dtype=np.float64
    )
    return found


def fitted_q(
    turns: FeatureTurns, counts: Array, *, gamma: float, prior: float, corrected: float
) -> tuple[Estimate, Array]:
    """Fitted-Q evaluation, with the bootstrap of conversations and Q fitted anew to each sample (Hao et al. 2021).

    The interval is the value plus and minus 1.96 root mean squared errors: the standard deviation of the bootstrap, and
    the bias where Q is not linear in the features, which no bootstrap of the same features sees. What the doubly robust
    estimate adds to this one is what the observed rewards say of that bias; it is counted whole, though a part of it is
    noise of the weights. Percentiles of the bootstrap would not do: a prior draws Q of what was rarely done towards the
    mean, in every sample once more, and they count that twice.

    Args:
        turns: what was observed.
        counts: bootstrap samples, (samples, n).
        gamma: discount a turn.
        prior: see `fit`.
        corrected: the doubly robust estimate of the same policy from the same conversations.

    Returns:
        The estimate, and the value in each bootstrap sample (samples,).
    """
    value = float(values(turns, np.ones((1, counts.shape[1])), gamma=gamma, prior=prior)[0])
    sampled = values(turns, counts, gamma=gamma, prior=prior)
    half = _Z95 * float(np.hypot(sampled.std(), value - corrected))
    return Estimate(value, (value - half, value + half)), sampled
