"""Guards of a promotion: what they let through and what they stop."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_iterppo.evaluation.guards import (
    FluencyLimits,
    Gain,
    Guard,
    Said,
    distinct_pairs,
    fluency,
    gain_interval,
    reward_hacking,
    script_shares,
)


def outcomes(won: int, of: int = 200) -> list[float]:
    return [1.0] * won + [0.0] * (of - won)


# -- reward hacking ----------------------------------------------------------------------------------------------------


def test_the_interval_of_a_gain_is_newcombes() -> None:
    # Newcombe 1998, table II: 56/70 and 48/80 with method 10 give 0.0524 to 0.3339.
    low, high = gain_interval(outcomes(48, 80), outcomes(56, 70), 0.95)
    assert (low, high) == (pytest.approx(0.0524, abs=5e-5), pytest.approx(0.3339, abs=5e-5))


def test_the_interval_of_amounts_is_the_normal_one() -> None:
    low, high = gain_interval([0.0, 2.0], [5.0, 5.0], 0.95)
    assert (low + high) / 2 == pytest.approx(4)
    assert high - low == pytest.approx(2 * 1.95996, abs=1e-3)  # variance 2 over 2 outcomes
    with pytest.raises(ValueError, match="at least two"):
        gain_interval([1.0], [1.0, 0.0], 0.95)


def test_a_gain_that_came_passes() -> None:
    found = reward_hacking([0.1, 0.08, 0.05], [outcomes(60), outcomes(90), outcomes(110)])
    assert found.passed is True
    assert [step["where"] for step in found.figures["steps"]] == ["iteration 0", "iteration 1", "all iterations"]
    assert found.figures["level"] == pytest.approx(1 - 0.05 / 3)


def test_a_promise_that_did_not_come_is_flagged() -> None:
    found = reward_hacking([0.1, 0.3, None], [outcomes(60), outcomes(90), outcomes(80)])
    assert found.passed is False
    assert "Q promised +0.300 in iteration 1, but -0.050 was seen" in found.says
    assert [step["passed"] for step in found.figures["steps"]] == [True, False, False]


def test_small_promises_add_up() -> None:
    flat = [outcomes(60, 100)] * 6
    found = reward_hacking([0.09] * 5, flat)
    assert [step["passed"] for step in found.figures["steps"]] == [True] * 5 + [False]


def test_what_nobody_has_seen_cannot_be_judged() -> None:
    for guard in (reward_hacking([0.5], [outcomes(60)]), reward_hacking([], []), reward_hacking([None], [[1.0]] * 2)):
        assert guard.passed is None and "yet" in guard.says
    assert "the logs cannot tell" in reward_hacking([0.5], [], None, "the logs cannot tell").says


def test_the_last_gain_may_be_an_off_policy_estimate() -> None:
    draws = np.linspace(0.0, 0.1, 1001)
    for promised, passed in ((0.097, True), (0.098, False)):
        found = reward_hacking([promised], [], Gain.of_draws(draws))
        (step,) = found.figures["steps"]
        assert found.passed is passed and (step["by"], step["where"]) == ("off-policy", "iteration 0")
        assert step["interval"] == pytest.approx((0.0025, 0.0975)) and step["seen"] == pytest.approx(0.05)


def test_every_comparison_counts_whatever_it_was_seen_by() -> None:
    found = reward_hacking([0.1, 0.098], [outcomes(60), outcomes(90)], Gain.of_draws(np.linspace(0.0, 0.1, 1001)))
    assert [step["by"] for step in found.figures["steps"]] == ["collected", "off-policy"]
    assert found.figures["level"] == pytest.approx(0.975) and found.passed is True, "at 95 % it would not"


def test_fresh_conversations_of_both_take_the_place_of_collected_ones() -> None:
    seen = Gain.of_outcomes("fresh", outcomes(60), outcomes(58))
    found = reward_hacking([0.1, 0.3], [outcomes(60), outcomes(90), outcomes(150)], seen)
    assert [(step["by"], step["passed"]) for step in found.figures["steps"]] == [
        *(("collected", True), ("fresh", False), ("collected", True))
    ]
    assert Gain.of_outcomes("fresh", [1.0], [0.0, 1.0]) is None


def test_where_people_take_most_turns_a_conversation_gains_a_share_of_the_promise() -> None:
    draws = np.linspace(0.0, 0.1, 1001)
    rare = reward_hacking([0.3], [], Gain.of_draws(draws, turns=0.25))
    assert rare.passed is True and rare.figures["steps"][0]["predicted"] == pytest.approx(0.075)
    often = reward_hacking([0.3], [], Gain.of_draws(draws, turns=4.0))
    assert often.passed is False and often.figures["steps"][0]["predicted"] == 0.3, "never more than the promise"


# -- fluency -----------------------------------------------------------------------------------------------------------

USUAL = Said(["would you like the red hat ?"] * 4, [8] * 4, [-8.0] * 4, [-8.0] * 4)


def guards(policy: Said, limits: FluencyLimits | None = None) -> dict[str, Guard]:
    return {guard.name: guard for guard in fluency(policy, USUAL, limits or FluencyLimits())}


def test_the_reference_passes_itself() -> None:
    found = guards(USUAL)
    assert set(found) == {"kl", "perplexity", "length", "repetition", "script"}
    assert all(guard.passed for guard in found.values())


@pytest.mark.parametrize(
    ("policy", "fails"),
    [
        (Said(USUAL.texts, [8] * 4, [-2.0] * 4, [-12.0] * 4), {"kl"}),
        (Said(USUAL.texts, [8] * 4, [-17.0] * 4, [-17.6] * 4), {"perplexity"}),
        (Said(USUAL.texts, [20] * 4, [-20.0] * 4, [-20.0] * 4), {"length"}),
        (Said(["yes"] * 4, [2] * 4, [-2.0] * 4, [-2.0] * 4), {"length"}),
        (Said(["buy it buy it buy it buy"] * 4, [8] * 4, [-8.0] * 4, [-8.0] * 4), {"repetition"}),
        (Said(["купи эту шляпу"] * 4, [8] * 4, [-8.0] * 4, [-8.0] * 4), {"script"}),
    ],
)
def test_each_guard_stops_what_it_is_for(policy: Said, fails: set[str]) -> None:
    found = guards(policy)
    assert {name for name, guard in found.items() if guard.passed is False} == fails


def test_limits_are_what_they_say() -> None:
    drifted = Said(USUAL.texts, [8] * 4, [-2.0] * 4, [-12.0] * 4)
    assert guards(drifted)["kl"].figures["measured"] == pytest.approx(1.25)
    assert guards(drifted, FluencyLimits(kl=1.3))["kl"].passed is True


def test_word_pairs_and_scripts() -> None:
    assert distinct_pairs("a b a b a") == pytest.approx(2 / 4)
    assert distinct_pairs("yes") == distinct_pairs("") == 1.0
    assert script_shares(["ab", "шж 12 !"]) == {"CYRILLIC": 0.5, "LATIN": 0.5}
    assert script_shares(["12"]) == {}
