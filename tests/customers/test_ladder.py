"""The ladder's guests: each rung pays exactly what its table says, and needs what it is for."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import get_args

import pytest

from lightning_iterppo.conversation import Message
from lightning_iterppo.customers import Customer, Reviewer
from lightning_iterppo.customers.ladder import ANSWERS, EditedLadderCustomer, LadderCustomer, Rung, ladder_logs

RUNGS: tuple[Rung, ...] = get_args(Rung)


def play(customer: LadderCustomer, seed: int, answers: Sequence[str]) -> tuple[str, list[float]]:
    """The wish, and what each turn earned."""
    wish = customer.reset(seed)
    history, rewards = [Message("customer", wish)], list[float]()
    for answer in answers:
        history.append(Message("agent", answer))
        reply = customer.reply(list(history))
        rewards.append(reply.reward)
        if reply.done:
            break
        history.append(Message("customer", reply.text))
    return wish, rewards


def paid(rung: Rung, wish: str) -> dict[tuple[str, ...], float]:
    """What each pair of answers earns in all, to a guest with this wish."""
    seed = next(seed for seed in range(20) if LadderCustomer(rung).reset(seed) == wish)
    return {pair: sum(play(LadderCustomer(rung), seed, pair)[1]) for pair in itertools.product(ANSWERS, ANSWERS)}


@pytest.mark.parametrize("wish", ["hot", "cold"])
def test_what_pays(wish: str) -> None:
    right = {"hot": "tea", "cold": "juice"}[wish]
    assert paid("constant", wish) == {(a, b): float(a == "tea") for a in ANSWERS for b in ANSWERS}
    assert paid("prompt", wish) == {(a, b): float(a == right) for a in ANSWERS for b in ANSWERS}
    assert paid("memory", wish) == {(a, b): float(b == right) for a in ANSWERS for b in ANSWERS}
    assert paid("delayed", wish) == {(a, b): float((a, b) == ("tea", "juice")) for a in ANSWERS for b in ANSWERS}
    assert paid("trap", wish) == {
        ("tea", "tea"): 0.25,
        ("tea", "juice"): 0.25,
        ("juice", "tea"): 1.0,
        ("juice", "juice"): 0.0,
    }


def test_the_first_turn_earns_only_in_the_trap() -> None:
    for rung in ("memory", "delayed", "trap"):
        first = play(LadderCustomer(rung), 1, ["tea"])[1]
        assert first == [0.25 if rung == "trap" else 0.0]


@pytest.mark.parametrize("rung", RUNGS)
def test_it_is_a_customer_and_nobody_reviews(rung: Rung) -> None:
    assert isinstance(LadderCustomer(rung), Customer)
    assert not isinstance(LadderCustomer(rung), Reviewer)


def test_an_unknown_rung() -> None:
    with pytest.raises(ValueError, match=r"rung must be one of constant, .* found 'top'"):
        LadderCustomer("top")  # type: ignore[arg-type]


def test_the_person_turns_every_suggestion_round() -> None:
    customer = EditedLadderCustomer()
    assert isinstance(customer, Reviewer)
    for suggested, expected in (("tea", "juice"), ("juice", "tea"), ("tea tea", "tea")):
        sent = customer.review([Message("customer", "hot"), Message("agent", suggested)])
        assert (sent.message, sent.disposition) == (expected, "edited")


@pytest.mark.parametrize("rung", RUNGS)
def test_the_logs_teach_how_to_speak_and_not_what_to_say(rung: Rung) -> None:
    logs = ladder_logs(200, seed=3, rung=rung)
    first = [log.turns[0].message for log in logs]
    assert set(first) == set(ANSWERS)
    assert 70 < first.count("tea") < 130
    assert logs == ladder_logs(200, seed=3, rung=rung)
    assert 20 < sum(log.outcome or 0.0 for log in logs) < 180
