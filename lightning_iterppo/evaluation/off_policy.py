"""What a policy would earn, from conversations that other policies had: the mathematics, with no model in it.

A log has n conversations of at most T turns. Conversation i took action a_t in state s_t with probability μ(a_t | s_t);
the policy in question would have with π(a_t | s_t). The weight of its first t turns is the product of the ratios
π / μ up to there; a conversation that has ended keeps its last weight. Every estimate here is a sum of ratios of means
over conversations, so that one class gives its value, its standard error and its bootstrap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class LoggedTurns:
    """Logged conversations as tables, one row a conversation, one column a turn; what is behind its end is 0.

    Args:
        log_ratios: log π(a_t | s_t) - log μ(a_t | s_t), (n, T); 0 where the agent did not choose.
        rewards: r_t, (n, T).
        present: whether the conversation has the turn, (n, T).

    Raises:
        ValueError: the shapes differ, or there is no conversation.
    """

    log_ratios: Array
    rewards: Array
    present: NDArray[np.bool_]

    def __post_init__(self) -> None:
        if not self.log_ratios.shape == self.rewards.shape == self.present.shape or not self.log_ratios.size:
            raise ValueError(
                f"log_ratios {self.log_ratios.shape}, rewards {self.rewards.shape} and present {self.present.shape} "
                "must be one shape (conversations, turns) with at least one of each"
            )

    @classmethod
    def of_rows(cls, log_ratios: Sequence[Sequence[float]], rewards: Sequence[Sequence[float]]) -> LoggedTurns:
        """From one list a conversation."""
        return cls(padded(log_ratios), padded(rewards), padded([[1.0] * len(row) for row in rewards]) > 0)

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def log_weights(self) -> Array:
        """Σ of the log ratios up to each turn, (n, T)."""
        found: Array = np.where(self.present, self.log_ratios, 0.0).cumsum(1)
        return found


def padded(rows: Sequence[Sequence[float]]) -> Array:
    """Lists as rows of a table (n, longest), with 0 behind their ends."""
    found = np.zeros((len(rows), max(map(len, rows), default=0)))
    for index, row in enumerate(rows):
        found[index, : len(row)] = row
    return found


# -- can these logs tell? ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Overlap:
    """How far logs speak of a policy, from the weights w_i of whole conversations.

    Args:
        conversations: n.
        effective_sample_size: (Σ w)² / Σ w², as many conversations of the policy's own would weigh alike (Kish 1965).
        largest_weight: the share of all weight that one conversation carries.
        mean_weight: Σ w / n. Its expectation is 1 whatever the policy is. Far below, the policy mostly does what was
            never logged: the ratios of what *was* logged are then all small and much alike, which the effective sample
            size takes for agreement. Far above, the recorded log-probabilities are not those of who acted.
    """

    conversations: int
    effective_sample_size: float
    largest_weight: float
    mean_weight: float


@dataclass(frozen=True)
class OverlapLimits:
    """What an overlap must have for anything to be estimated.

    The mean weight matters most: those logs in which heavy conversations are missing by chance have a low mean and a
    *high* effective sample size, and underrate the policy.

    Args:
        effective_sample_size: at least.
        largest_weight: at most.
        mean_weight: between this and its inverse.
    """

    effective_sample_size: float = 50.0
    largest_weight: float = 0.1
    mean_weight: float = 0.8

    def reasons(self, found: Overlap) -> list[str]:
        """Why these logs cannot tell, each with its rule and threshold; empty when they can."""
        said = []
        if not found.effective_sample_size >= self.effective_sample_size:
            said.append(
                f"the effective sample size is {found.effective_sample_size:.1f} of {found.conversations} "
                f"conversations, under {self.effective_sample_size:g}"
            )
        if not found.largest_weight <= self.largest_weight:
            said.append(
                f"one conversation carries {found.largest_weight:.2f} of the weight, more than {self.largest_weight:g}"
            )
        if not self.mean_weight <= found.mean_weight <= 1 / self.mean_weight:
            said.append(
                f"the mean weight is {found.mean_weight:.3g} and should be about 1, between {self.mean_weight:g} and "
                f"{1 / self.mean_weight:g}: " + _MEANING[found.mean_weight > 1]
            )
        return said


_MEANING = {
    False: "most of what the policy does was never logged",
    True: "the recorded log-probabilities are not those of what was sampled",
}


def overlap_of(logs: LoggedTurns) -> Overlap:
    """The overlap of whole conversations."""
    last = logs.log_weights[:, -1]
    top = last.max()
    scaled = np.exp(last - top)
    with np.errstate(over="ignore"):
        mean = float(np.exp(np.minimum(top, 700.0)) * scaled.mean())
    return Overlap(
        conversations=len(logs),
        effective_sample_size=float(scaled.sum() ** 2 / np.square(scaled).sum()),
        largest_weight=float(scaled.max() / scaled.sum()),
        mean_weight=mean,
    )


# -- estimates as sums of ratios ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RatioSum:
    """Σ_k mean_i(a_ik) / mean_i(b_ik).

    Args:
        above: a, (n, k).
        below: b, (n, k), not negative.
    """

    above: Array
    below: Array

    def values(self, counts: Array) -> Array:
        """With conversation i taken counts[., i] times: (samples, n) to (samples,)."""
        found: Array = ((counts @ self.above) / (counts @ self.below)).sum(1)
        return found

    @property
    def value(self) -> float:
        """With every conversation taken once."""
        return float(self.values(np.ones((1, len(self.above))))[0])

    def influences(self, counts: Array) -> Array:
        """What each conversation adds to the error, to first order (the delta method), (samples, n)."""
        above, below = counts @ self.above, counts @ self.below  # (samples, k)
        size = counts.sum(1, keepdims=True)
        share = above / below
        found: Array = (self.above @ (size / below).T).T - (self.below @ (size * share / below).T).T
        return found

    def errors(self, counts: Array) -> Array:
        """Standard errors, (samples,)."""
        size = counts.sum(1)
        spread = (counts * np.square(self.influences(counts))).sum(1) / size
        found: Array = np.sqrt(spread / np.maximum(size - 1, 1))
        return found


def per_decision(logs: LoggedTurns, gamma: float = 1.0) -> RatioSum:
    """Per-decision importance sampling, self-normalised at every turn (Precup, Sutton and Singh 2000).

    Σ_t γ^t Σ_i w_it r_it / Σ_i w_it: a reward is weighted by what was done up to it and by nothing later.
    """
    weights = _scaled(logs.log_weights)
    return RatioSum(_discounts(logs, gamma) * weights * logs.rewards, weights)


def doubly_robust(logs: LoggedTurns, q: Array, v: Array, gamma: float = 1.0) -> RatioSum:
    """The weighted doubly robust estimate (Jiang and Li 2016; Thomas and Brunskill 2016, equation 12).

    Σ_i Σ_t γ^t (ŵ_i,t (r_it - Q(s_it, a_it)) + ŵ_i,t-1 V(s_it)), with ŵ the weights divided by their sum over the
    conversations, and 1 / n before the first turn. Right if the ratios are right, whatever Q; and the better Q, the
    less the ratios' noise counts. Q must not have been fitted to the conversation that it judges, see `cross_fitted`:
    else its error and the rewards' go together, and the interval is too narrow.

    Args:
        logs: the conversations.
        q: Q(s, a) of what was done, (n, T), 0 behind the end.
        v: V(s) = E_π[Q(s, a)], (n, T), 0 behind the end.
        gamma: discount a turn.
    """
    weights = _scaled(logs.log_weights)
    before = np.concatenate([np.ones((len(logs), 1)), weights[:, :-1]], 1)
    discounts = _discounts(logs, gamma)
    return RatioSum(
        np.concatenate([discounts * weights * (logs.rewards - q), discounts * before * v], 1),
        np.concatenate([weights, before], 1),
    )


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval."""

    value: float
    ci95: tuple[float, float]


def resamples(conversations: int, samples: int, seed: int) -> Array:
    """How often each conversation is in each bootstrap sample, (samples, n): whole conversations, with replacement."""
    n = conversations
    found: Array = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=samples).astype(np.float64)
    return found


def studentised(estimator: RatioSum, counts: Array) -> Estimate:
    """An estimate with the studentised bootstrap's interval (Efron and Tibshirani 1993, section 12.5).

    Samples with a large value have a large error too, since the same heavy conversations make both: the percentiles of
    the value alone cover too rarely, those of its distance in standard errors do not (docs/off-policy.md).

    Args:
        estimator: the estimate.
        counts: of `resamples`.
    """
    value = estimator.value
    error = float(estimator.errors(np.ones((1, counts.shape[1])))[0])
    errors = estimator.errors(counts)
    some = errors > 0  # a sample of which all conversations are alike says nothing of the spread
    if error == 0 or not some.any():
        return Estimate(value, (value, value))
    low, high = np.quantile((estimator.values(counts[some]) - value) / errors[some], [0.025, 0.975])
    return Estimate(value, (value - float(high) * error, value - float(low) * error))


def _discounts(logs: LoggedTurns, gamma: float) -> Array:
    found: Array = np.power(gamma, np.arange(logs.rewards.shape[1]), dtype=np.float64)
    return found


def _scaled(log_weights: Array) -> Array:
    """Weights up to a factor a turn, which no ratio of them sees: so that none overflows."""
    found: Array = np.exp(log_weights - log_weights.max(0))
    return found
