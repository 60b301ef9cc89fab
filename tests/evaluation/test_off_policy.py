"""Off-policy estimates: by hand where that can be done, against exact values where it cannot."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lightning_iterppo.evaluation.fitted_q import FeatureTurns, choose_prior, cross_fitted, fit, fitted_q
from lightning_iterppo.evaluation.off_policy import (
    Array,
    LoggedTurns,
    OverlapLimits,
    RatioSum,
    doubly_robust,
    overlap_of,
    per_decision,
    resamples,
    studentised,
)
from lightning_iterppo.evaluation.policy_value import ESTIMATORS, ValueSettings, policy_value


def tables(
    ratios: list[list[float]], rewards: list[list[float]], features: list[list[list[float]]]
) -> tuple[LoggedTurns, FeatureTurns]:
    """Conversations with ratios (no logarithms), rewards, and features that are both done and expected."""
    logs = LoggedTurns.of_rows([[math.log(each) for each in row] for row in ratios], rewards)
    flat = np.array([each for row in features for each in row], dtype=float)
    numbers = np.array([number for number, row in enumerate(rewards) for _ in row])
    return logs, FeatureTurns(flat, flat, np.array([each for row in rewards for each in row]), numbers)


def chance(n: int, *, turns: int = 2, seed: int = 0, spread: float = 0.0) -> tuple[LoggedTurns, FeatureTurns]:
    """Logs whose ratios do not depend on what is earned: the value is the plain mean's expectation."""
    rng = np.random.default_rng(seed)
    ratios = np.exp(spread * rng.standard_normal((n, turns)) - spread**2 / 2).tolist()
    rewards = [[0.0] * (turns - 1) + [float(rng.random() < 0.4)] for _ in range(n)]
    features = [[[float(t == turn) for t in range(turns)] for turn in range(turns)] for _ in range(n)]
    return tables(ratios, rewards, features)


def unseen_by_features(n: int) -> tuple[LoggedTurns, FeatureTurns]:
    """One turn; the good action pays 0.8 and the other one 0.2, and features tell neither apart.

    The logs take either half the time, the policy the good one nine times of ten: its value is 0.74.
    """
    rng = np.random.default_rng(3)
    good = rng.random(n) < 0.5
    paid = rng.random(n) < np.where(good, 0.8, 0.2)
    ratios = [[1.8 if each else 0.2] for each in good]
    return tables(ratios, [[float(each)] for each in paid], [[[0.0]]] * n)


# -- by hand -----------------------------------------------------------------------------------------------------------


def test_ratios_of_1_give_the_plain_mean() -> None:
    logs, turns = tables([[1, 1], [1], [1, 1]], [[0, 1], [1], [0, 0]], [[[1], [2]], [[3]], [[1], [0]]])
    q, v = cross_fitted(turns, gamma=1.0, prior=0.5, seed=0)
    assert per_decision(logs).value == pytest.approx(2 / 3)
    # Done and expected are the same here, so that every correction of Q takes back what Q said.
    assert doubly_robust(logs, q, v).value == pytest.approx(2 / 3)
    direct, _ = fitted_q(turns, np.ones((2, 3)), gamma=1.0, prior=1e-9, corrected=2 / 3)
    assert direct.value == pytest.approx(2 / 3, abs=0.2)


def test_the_interval_of_fitted_q_evaluation_knows_what_its_features_do_not_tell_apart() -> None:
    logs, turns = unseen_by_features(500)
    estimates = policy_value(logs, turns, ValueSettings()).estimates
    direct, robust = estimates["fqe"], estimates["doubly_robust"]
    assert direct is not None and robust is not None
    assert direct.value == pytest.approx(0.5, abs=0.05)  # the mean of what was logged: no Q of an action
    assert robust.value == pytest.approx(0.74, abs=0.05)
    assert direct.ci95[0] < 0.26 < 0.74 < direct.ci95[1]


def test_a_reward_is_weighted_by_what_was_done_up_to_it_and_by_nothing_later() -> None:
    logs, _ = tables([[3, 100], [1, 2]], [[1, 0], [0, 1]], [[[0], [0]], [[0], [0]]])
    # Turn 1: weights 3 and 1; turn 2: 300 and 2.
    assert per_decision(logs).value == pytest.approx(3 / 4 + 2 / 302)
    assert per_decision(logs, gamma=0.5).value == pytest.approx(3 / 4 + 0.5 * 2 / 302)


def test_a_conversation_that_has_ended_keeps_its_weight() -> None:
    logs, _ = tables([[2], [1, 4]], [[1], [0, 1]], [[[0]], [[0], [0]]])
    assert np.exp(logs.log_weights) == pytest.approx(np.array([[2, 2], [1, 4]]))
    assert per_decision(logs).value == pytest.approx(2 / 3 + 4 / 6)


def test_the_doubly_robust_estimate_by_hand() -> None:
    logs, _ = tables([[2], [1]], [[1], [0]], [[[0]], [[0]]])
    q, v = np.array([[0.5], [0.25]]), np.array([[0.6], [0.4]])
    # mean V + Σ w (r - Q) / Σ w
    assert doubly_robust(logs, q, v).value == pytest.approx(0.5 + (2 * 0.5 - 0.25) / 3)
    nothing = np.zeros((2, 1))
    assert doubly_robust(logs, nothing, nothing).value == pytest.approx(per_decision(logs).value)


def test_a_perfect_q_leaves_no_noise_of_the_ratios() -> None:
    logs, _ = tables([[9], [0.1], [1]], [[0.3], [0.3], [0.3]], [[[0]], [[0]], [[0]]])
    exact = np.full((3, 1), 0.3)
    made = studentised(doubly_robust(logs, exact, exact), resamples(3, 50, 0))
    assert (made.value, made.ci95) == (pytest.approx(0.3), (pytest.approx(0.3), pytest.approx(0.3)))


def test_fitted_q_goes_back_from_the_last_turn() -> None:
    # Two turns without features: all that is earned is earned on the second, by half of the conversations.
    _, turns = tables([[1, 1]] * 4, [[0, 1], [0, 0], [0, 1], [0, 0]], [[[0.0], [0.0]]] * 4)
    assert fit(turns, np.ones(4), gamma=0.9, prior=1e-9)[:, 1] == pytest.approx([0.45, 0.5])
    more = fit(turns, np.array([3.0, 1.0, 0.0, 0.0]), gamma=0.9, prior=1e-9)
    assert more[:, 1] == pytest.approx([0.675, 0.75])


def test_what_is_good_on_one_turn_may_be_bad_on_the_next() -> None:
    # The same feature earns on the second turn only, and loses on the first.
    features = [[[a], [b]] for a in (0.0, 1.0) for b in (0.0, 1.0)]
    rewards = [[-a, b] for a in (0.0, 1.0) for b in (0.0, 1.0)]
    _, turns = tables([[1, 1]] * 4, rewards, features)
    weights = fit(turns, np.ones(4), gamma=1.0, prior=1e-9)
    assert weights == pytest.approx(np.array([[-1, 0.5], [1, 0]]), abs=1e-6)


def test_a_turn_that_no_counted_conversation_has_is_judged_as_the_one_before_it() -> None:
    _, turns = tables([[1], [1, 1]], [[1], [0, 5]], [[[1.0]], [[1.0], [1.0]]])
    weights = fit(turns, np.array([1.0, 0.0]), gamma=1.0, prior=1.0)
    assert (weights[1] == weights[0]).all()
    assert weights[0].sum() == pytest.approx(1)


@pytest.mark.parametrize("gamma", [1.0, 0.5])
def test_the_prior_is_stronger_where_features_say_nothing(gamma: float) -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(200, 1, 20))
    says = features[:, :, 0]
    noise = rng.normal(size=(200, 1))
    _, clear = tables([[1]] * 200, says.tolist(), features.tolist())
    _, none = tables([[1]] * 200, noise.tolist(), features.tolist())
    assert choose_prior(clear, gamma=gamma, seed=0) == pytest.approx(0.001)
    assert choose_prior(none, gamma=gamma, seed=0) > 1


def test_the_prior_is_chosen_by_what_came_later_too() -> None:
    # Two turns; what the first says is only earned on the second.
    rng = np.random.default_rng(1)
    features = rng.normal(size=(100, 2, 10))
    rewards = [[0.0, float(each)] for each in features[:, 0, 0]]
    _, turns = tables([[1, 1]] * 100, rewards, features.tolist())
    _, later = tables([[1, 1]] * 100, rewards, np.roll(features, 1, axis=0).tolist())
    assert choose_prior(turns, gamma=1.0, seed=0) < choose_prior(later, gamma=1.0, seed=0)


def test_q_is_judged_by_a_fit_without_the_conversation() -> None:
    _, turns = tables([[1]] * 5, [[1], [0], [0], [0], [0]], [[[0.0]]] * 5)
    q, v = cross_fitted(turns, gamma=1.0, prior=1.0, seed=0)
    assert q[:, 0] == pytest.approx([0, 0.25, 0.25, 0.25, 0.25])
    assert (q == v).all()


def test_the_standard_error_of_a_mean_is_the_textbooks() -> None:
    values = np.array([[1.0], [2.0], [4.0], [9.0]])
    mean = RatioSum(values, np.ones((4, 1)))
    expected = float(values.std(ddof=1)) / 2
    assert mean.errors(np.ones((1, 4)))[0] == pytest.approx(expected)
    # And the bootstrap's spread is that of the resampled means.
    counts = resamples(4, 20_000, 1)
    assert float(mean.values(counts).std()) == pytest.approx(float(values.std()) / 2, rel=0.03)


def test_weights_of_any_size_do_not_overflow() -> None:
    logs = LoggedTurns.of_rows([[900.0], [901.0]], [[1.0], [0.0]])
    assert per_decision(logs).value == pytest.approx(1 / (1 + math.e))
    assert math.isfinite(overlap_of(logs).mean_weight)


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_the_effective_sample_size_by_hand() -> None:
    found = overlap_of(tables([[3], [1]], [[0], [0]], [[[0]], [[0]]])[0])
    assert found.effective_sample_size == pytest.approx(16 / 10)
    assert (found.largest_weight, found.mean_weight) == (pytest.approx(0.75), pytest.approx(2))


@pytest.mark.parametrize(
    ("ratios", "rule"),
    [
        ([[1.0]] * 20, "the effective sample size is 20.0 of 20 conversations, under 50"),
        ([[1.0]] * 100 + [[20.0]], "one conversation carries 0.17 of the weight, more than 0.1"),
        (
            [[0.01]] * 100,
            "the mean weight is 0.01 and should be about 1, between 0.8 and 1.25: most of what the policy",
        ),
        ([[3.0]] * 100, "the mean weight is 3 and should be about 1, between 0.8 and 1.25: the recorded"),
    ],
)
def test_too_little_overlap_is_refused_with_its_rule(ratios: list[list[float]], rule: str) -> None:
    logs, turns = tables(ratios, [[1.0]] * len(ratios), [[[1.0]]] * len(ratios))
    found = policy_value(logs, turns, ValueSettings())
    assert found.verdict == "cannot tell"
    assert any(reason.startswith(rule) for reason in found.reasons)
    said = found.to_json()
    assert all(said[name] == {"value": None, "ci95": None} for name in ESTIMATORS)
    assert found.sampled is None


def test_enough_overlap_is_not_refused() -> None:
    logs, turns = chance(200, spread=0.3)
    assert OverlapLimits().reasons(overlap_of(logs)) == []
    assert policy_value(logs, turns, ValueSettings(samples=200, fits=20)).verdict == "estimated"


# -- intervals ---------------------------------------------------------------------------------------------------------


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    holds: dict[str, list[bool]] = {name: [] for name in ESTIMATORS}
    for seed in range(60):
        found = policy_value(*chance(150, seed=seed, spread=0.3), ValueSettings(samples=300, fits=40))
        assert not found.reasons
        for name, estimate in found.estimates.items():
            assert estimate is not None and estimate.ci95[0] <= estimate.value <= estimate.ci95[1]
            holds[name].append(estimate.ci95[0] <= 0.4 <= estimate.ci95[1])
    for name, each in holds.items():
        assert 0.85 <= np.mean(each) <= 1, name


def test_the_same_seed_gives_the_same_interval() -> None:
    one, again, other = (
        policy_value(*chance(100, spread=0.3), ValueSettings(samples=100, fits=20, seed=seed)) for seed in (1, 1, 2)
    )
    assert one.estimates == again.estimates != other.estimates


def test_tables_of_other_shapes_are_refused() -> None:
    one: Array = np.zeros((2, 1))
    with pytest.raises(ValueError, match=r"must be one shape"):
        LoggedTurns(one, np.zeros((2, 2)), one > 0)
