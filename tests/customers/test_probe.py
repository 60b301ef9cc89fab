"""The probe's guest: the optimum is what the best agent gets, and only an agent that looks ahead gets it."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from lightning_iterppo.composition import compose
from lightning_iterppo.conversation import Conversation, Message
from lightning_iterppo.customers import Customer, CustomerReply
from lightning_iterppo.customers.probe import ORDERS, TOPICS, WORDS, ProbeCustomer, scripted_logs
from lightning_iterppo.models.scratch import make_scratch_tokenizer

SEEDS = range(40)


def play(seed: int, agent: Callable[[list[Message]], str]) -> tuple[list[Message], list[CustomerReply]]:
    """A conversation of a guest with an agent: every message, and the guest's two replies."""
    guest = ProbeCustomer()
    history = [Message("customer", guest.reset(seed))]
    replies: list[CustomerReply] = []
    while not replies or not replies[-1].done:
        history.append(Message("agent", agent(history)))
        replies.append(guest.reply(list(history)))
        history.append(Message("customer", replies[-1].text))
    return history, replies


def rate(agent: Callable[[list[Message]], str]) -> float:
    return sum(play(seed, agent)[1][-1].reward for seed in SEEDS) / len(SEEDS)


def test_it_is_a_customer() -> None:
    assert isinstance(ProbeCustomer(), Customer)


def test_the_best_agent_reaches_the_optimum() -> None:
    assert rate(ProbeCustomer.best_answer) == ProbeCustomer.optimum == 1.0


def test_every_guest_comes() -> None:
    played = [play(seed, ProbeCustomer.best_answer)[0] for seed in SEEDS]
    met = {(history[0].content, history[2].content) for history in played}
    assert met == {(mood, f"okay {temperature}") for mood, temperature in ORDERS}


@pytest.mark.parametrize("seed", range(8))
def test_one_pair_of_words_pays_and_the_first_turn_never(seed: int) -> None:
    paying = []
    for words in itertools.product(TOPICS.values(), ORDERS.values()):
        said = iter(words)
        history, (first, second) = play(seed, lambda _, said=said: next(said))
        assert (first.reward, first.done) == (0.0, False)
        assert second.done and second.reward in (0.0, 1.0)
        assert first.text.startswith("okay") == (words[0] == TOPICS[history[0].content])
        if second.reward:
            paying.append(words)
    assert len(paying) == 1


def test_no_fixed_answers_do_well() -> None:
    """Neither the opening nor the second message may be ignored."""
    for first, second in itertools.product(TOPICS.values(), ORDERS.values()):
        assert rate(lambda history, a=first, b=second: a if len(history) == 1 else b) < 0.5
    for second in ORDERS.values():
        assert rate(lambda history, b=second: ProbeCustomer.best_answer(history) if len(history) == 1 else b) < 0.5


def test_the_first_word_decides_whether_the_second_can_pay() -> None:
    wrong = {"drink": "food", "food": "drink"}

    def agent(history: list[Message]) -> str:
        best = ProbeCustomer.best_answer(history)
        return wrong.get(best, best)

    assert rate(agent) == 0.0


@pytest.mark.parametrize("spoil", ["{} {}", "{} thanks", "thanks {}", "", "{}."])
def test_more_than_the_word_is_not_the_word(spoil: str) -> None:
    def agent(history: list[Message]) -> str:
        best = ProbeCustomer.best_answer(history)
        return best if len(history) == 1 else spoil.format(best, best)

    assert rate(agent) == 0.0


def test_the_same_seed_is_the_same_guest_and_one_object_plays_many() -> None:
    guest = ProbeCustomer()
    assert [guest.reset(seed) for seed in SEEDS] == [ProbeCustomer().reset(seed) for seed in SEEDS]
    assert play(3, ProbeCustomer.best_answer) == play(3, ProbeCustomer.best_answer)


def test_logs_are_of_a_random_agent() -> None:
    logs = scripted_logs(400, seed=1)
    assert len({log.seed for log in logs}) == len({log.id for log in logs}) == 400
    assert 0.08 < sum(log.outcome or 0.0 for log in logs) / 400 < 0.17
    for place, words in enumerate((TOPICS, ORDERS)):
        said = [log.turns[place].message for log in logs]
        assert set(said) == set(words.values())
        assert all(said.count(word) > 400 / len(words) / 2 for word in words.values())
    for log in logs:
        assert len(log.turns) == 2 and log.turns[0].reward == 0.0 and log.turns[1].reward == log.outcome
        assert Conversation.from_json(log.to_json()) == log


def test_logs_come_from_their_seed() -> None:
    assert scripted_logs(20, seed=1) == scripted_logs(20, seed=1)
    assert scripted_logs(20, seed=1) != scripted_logs(20, seed=2)
    assert not {log.seed for log in scripted_logs(20, seed=1)} & {log.seed for log in scripted_logs(20, seed=2)}


def test_the_recipe_knows_every_word() -> None:
    scratch = compose("probe").model.scratch
    assert scratch is not None
    tokenizer = make_scratch_tokenizer(scratch.vocabulary, scratch.max_length)
    for log in scripted_logs(40, seed=1):
        for message in log.messages:
            assert tokenizer.unk_token_id not in tokenizer(message.content)["input_ids"]
    assert set(scratch.vocabulary) == set(WORDS)
