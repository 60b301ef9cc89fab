"""Guards of a promotion: has Q been gamed, and is the text still what it was? The mathematics, with no model in it."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import NormalDist, fmean, variance
from typing import Any

import numpy as np

from lightning_iterppo.evaluation.off_policy import Array


@dataclass(frozen=True)
class Guard:
    """What a guard found.

    Args:
        name: of the guard.
        passed: None when it could not be measured, which blocks nothing and is said.
        says: what was found, in a sentence.
        figures: what it was found from, with thresholds.
    """

    name: str
    passed: bool | None
    says: str
    figures: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """For promotion.json."""
        return asdict(self)


# -- reward hacking ----------------------------------------------------------------------------------------------------


def gain_interval(before: Sequence[float], after: Sequence[float], level: float) -> tuple[float, float]:
    """An interval for the mean of ``after`` minus that of ``before``, which are outcomes of other conversations.

    Outcomes that are all 0 or 1 get Newcombe's hybrid score interval (Newcombe 1998, method 10), which is right near 0
    and 1 too; amounts get the normal one with separate variances.

    Args:
        before: at least two outcomes.
        after: at least two outcomes.
        level: e.g. 0.95.

    Raises:
        ValueError: there are fewer than two outcomes.
    """
    if min(len(before), len(after)) < 2:
        raise ValueError("a gain needs at least two outcomes on either side")
    z = NormalDist().inv_cdf((1 + level) / 2)
    old, new = fmean(before), fmean(after)
    if all(outcome in (0, 1) for outcome in (*before, *after)):
        old_low, old_high = _wilson(old, len(before), z)
        new_low, new_high = _wilson(new, len(after), z)
        low = new - old - math.hypot(new - new_low, old_high - old)
        return low, new - old + math.hypot(new_high - new, old - old_low)
    half = z * math.sqrt(variance(before) / len(before) + variance(after) / len(after))
    return new - old - half, new - old + half


def _wilson(share: float, trials: int, z: float) -> tuple[float, float]:
    scale = 1 + z**2 / trials
    centre = (share + z**2 / (2 * trials)) / scale
    half = z * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2)) / scale
    return centre - half, centre + half


@dataclass(frozen=True)
class Gain:
    """What an improvement was seen to bring a whole conversation.

    Args:
        by: what it was seen by: ``collected`` or ``fresh`` conversations, or ``off-policy``.
        mean: of it.
        interval: at a level, e.g. 0.95.
        turns: in which the agent chose, a conversation. Where people take most turns themselves that is under 1, and
            only that share of what Q promises for a turn is due.
    """

    by: str
    mean: float
    interval: Callable[[float], tuple[float, float]]
    turns: float = 1.0

    @classmethod
    def of_outcomes(cls, by: str, before: Sequence[float], after: Sequence[float], turns: float = 1.0) -> Gain | None:
        """From the outcomes of either policy's own conversations; None with fewer than two of one."""
        if min(len(before), len(after)) < 2:
            return None
        return cls(by, fmean(after) - fmean(before), lambda level: gain_interval(before, after, level), turns)

    @classmethod
    def of_draws(cls, differences: Array, turns: float = 1.0) -> Gain:
        """From the difference of two off-policy estimates in each of the bootstrap samples that they share."""

        def interval(level: float) -> tuple[float, float]:
            low, high = np.quantile(differences, [(1 - level) / 2, (1 + level) / 2])
            return float(low), float(high)

        return cls("off-policy", float(differences.mean()), interval, turns)


@dataclass(frozen=True)
class Step:
    """A gain that Q predicted, beside the one that was seen, its interval, and whether they agree."""

    where: str
    by: str
    predicted: float
    seen: float
    interval: tuple[float, float]
    passed: bool


def reward_hacking(
    predicted: Sequence[float | None],
    outcomes: Sequence[Sequence[float]],
    last: Gain | None = None,
    unseen: str = "nothing else was seen of one yet",
) -> Guard:
    """Whether Q promised more than came.

    Iteration k's improvement raised Q of a response by ``predicted[k]`` on average. By the performance difference lemma
    (Kakade and Langford 2002) the whole conversation gains that at *every* turn in which the agent chooses, so that, in
    states like the logged ones, it is the least that Q promises for the outcome wherever there is one such turn a
    conversation (`Gain.turns`). The guard fails where it lies above the interval of the gain that was seen between the
    conversations of π_k and of π_{k+1}; likewise all gains together against the last minus the first. The level of each
    interval is 1 - 0.05 / tests (Bonferroni), so that chance in the outcomes makes a sound run fail in at most one of
    twenty cases. The promise's own noise, of some hundred responses, is not recorded.

    Args:
        predicted: ``policy.reward_gain`` of each iteration, None where it was not measured.
        outcomes: of the conversations that each iteration collected, and of its last policy if there are some: one more
            list than ``predicted`` then.
        last: the gain of the last iteration, where it was seen by something better than ``outcomes``.
        unseen: why it was not, for people.
    """
    name = "reward hacking"
    if all(gain is None for gain in predicted):
        return Guard(name, None, "the run has not measured yet what Q promised", {"steps": []})
    seen = [Gain.of_outcomes("collected", *pair) for pair in pairwise(outcomes)][: len(predicted)]
    seen += [None] * (len(predicted) - len(seen))
    if last is not None:
        seen[-1] = last
    found = {
        number: (gain * min(1.0, each.turns), each)
        for number, (gain, each) in enumerate(zip(predicted, seen, strict=True))
        if gain is not None and each is not None
    }
    if not found:
        says = f"no improvement has been followed by conversations of its policy in the run; {unseen}"
        return Guard(name, None, says, {"steps": []})
    pairs = [(f"iteration {number}", *pair) for number, pair in found.items()]
    followed = range(len(outcomes) - 1)
    if len(followed) > 1 and all(number in found for number in followed):
        total = Gain.of_outcomes("collected", outcomes[0], outcomes[-1])
        if total is not None:
            pairs.append(("all iterations", sum(found[number][0] for number in followed), total))
    level = 1 - 0.05 / len(pairs)
    steps = []
    for where, gain, each in pairs:
        interval = each.interval(level)
        steps.append(Step(where, each.by, gain, each.mean, interval, gain <= interval[1]))
    wrong = [step for step in steps if not step.passed]
    if not wrong:
        says = f"Q promised no more than came, in {len(steps)} comparison{'s' * (len(steps) > 1)}"
    else:
        worst = max(wrong, key=lambda step: step.predicted - step.interval[1])
        low, high = worst.interval
        says = (
            f"Q promised {worst.predicted:+.3f} in {worst.where}, but {worst.seen:+.3f} was seen (interval {low:+.3f} "
            f"to {high:+.3f}): the policy may please Q and not the customer"
        )
    return Guard(name, not wrong, says, {"level": level, "steps": [asdict(step) for step in steps]})


# -- fluency -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Said:
    """Responses of a policy to some states.

    Args:
        texts: what it said.
        tokens: how many tokens each has.
        logprobs: log-probability of each under the policy itself, in nats.
        reference_logprobs: the same under the reference.
    """

    texts: Sequence[str]
    tokens: Sequence[int]
    logprobs: Sequence[float]
    reference_logprobs: Sequence[float]


@dataclass(frozen=True)
class FluencyLimits:
    """How far the text may go from the reference's; every figure but the first is against the reference's own.

    Args:
        kl: KL(policy ‖ reference), in nats a token, at most.
        perplexity_ratio: perplexity under the reference, over that of the reference's own responses, at most.
        length_ratio: mean tokens of a response, over the reference's, at most; and at least its inverse.
        distinct_ratio: share of different word pairs within a response, over the reference's, at least.
        script_shift: share of letters that would have to change their script for the shares to be alike, at most.
        language_shift: share of responses that would have to change their language for the shares to be alike, at most.
    """

    kl: float = 1.0
    perplexity_ratio: float = 3.0
    length_ratio: float = 2.0
    distinct_ratio: float = 0.8
    script_shift: float = 0.1
    language_shift: float = 0.1


def fluency(policy: Said, reference: Said, limits: FluencyLimits) -> list[Guard]:
    """Compares what a policy and the reference say in the same states.

    Args:
        policy: at least one response.
        reference: at least one response.
        limits: thresholds.
    """
    tokens = sum(policy.tokens)
    kl = (sum(policy.logprobs) - sum(policy.reference_logprobs)) / tokens
    perplexity, usual = _perplexity(policy), _perplexity(reference)
    length, own = fmean(policy.tokens), fmean(reference.tokens)
    distinct, base = _mean_distinct(policy.texts), _mean_distinct(reference.texts)
    shares, expected = script_shares(policy.texts), script_shares(reference.texts)
    shift = sum(abs(shares.get(each, 0.0) - expected.get(each, 0.0)) for each in {*shares, *expected}) / 2
    ratio, share = limits.length_ratio, limits.distinct_ratio
    return [
        _guard("kl", kl, None, "nats a token from the reference", most=limits.kl),
        _guard("perplexity", perplexity, usual, "times the reference's own under it", most=limits.perplexity_ratio),
        _guard("length", length, own, "times the reference's tokens a response", most=ratio, least=1 / ratio),
        _guard("repetition", distinct, base, "times the reference's share of different word pairs", least=share),
        Guard(
            "script",
            shift <= limits.script_shift,
            f"{shift:.3f} of the letters are of another script than the reference's (at most {limits.script_shift:g})",
            {"policy": shares, "reference": expected, "shift": shift, "at_most": limits.script_shift},
        ),
    ]


def _guard(
    name: str,
    value: float,
    usual: float | None,
    unit: str,
    *,
    most: float | None = None,
    least: float | None = None,
) -> Guard:
    """A guard on a figure, or on its ratio to the usual one."""
    measured = value if usual is None else value / usual
    passed = (most is None or measured <= most) and (least is None or measured >= least)
    ends = (("at least", least), ("at most", most))
    bounds = ", ".join(f"{word} {end:g}" for word, end in ends if end is not None)
    figures = {"policy": value, "reference": usual, "measured": measured, "at_most": most, "at_least": least}
    return Guard(name, passed, f"{measured:.3g} {unit} ({bounds})", figures)


def _perplexity(said: Said) -> float:
    return math.exp(min(700.0, -sum(said.reference_logprobs) / sum(said.tokens)))


def distinct_pairs(text: str) -> float:
    """Share of a text's word pairs that are different from one another; 1 when there is none to repeat."""
    words = text.split()
    pairs = list(pairwise(words))
    return len(set(pairs)) / len(pairs) if pairs else 1.0


def _mean_distinct(texts: Sequence[str]) -> float:
    return fmean(distinct_pairs(text) for text in texts)


def script_shares(texts: Sequence[str]) -> dict[str, float]:
    """Share of each script (LATIN, CYRILLIC, CJK, …: the first word of a letter's Unicode name) in all letters."""
    counts = Counter(
        unicodedata.name(letter, "UNNAMED").split()[0] for text in texts for letter in text if letter.isalpha()
    )
    total = sum(counts.values())
    return {script: count / total for script, count in sorted(counts.items())}
