"""For the tests of people who write a customer: does it keep what a customer promises?"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any, Final

from lightning_iterppo.conversation import Conversation, Suggestion
from lightning_iterppo.customers import Customer
from lightning_iterppo.side_by_side import SideBySide
from lightning_iterppo.talk import Talk, waits

#: What the agent says where a test has nothing better: a model that has not learnt yet says worse.
MESSAGES: Final = (
    "Hello, what can I do for you?",
    "I would take the red one.",
    "",
    "It is 40 euros. Do you want it?",
    "a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a",
    "Ünïcode 😀 {braces} <b>tags</b> \\ \n\n new lines",
)


def check_customer(
    make: Callable[[], Any],
    *,
    seeds: Sequence[int] = range(8),
    messages: Sequence[str] = MESSAGES,
    events: bool = True,
    asynchronous: Callable[[], Any] | None = None,
    timeout: float = 60.0,
) -> list[Conversation]:
    """Talks to a customer, and checks all that the loop relies on.

    Every conversation ends; types are right; rewards are finite, and add up to 0 to 1 where ``events``; the same seed
    and the same agent messages give the same conversation, from a new object, from one that had another conversation
    before, and from one that was pickled. Call it from a test of yours:

    >>> from lightning_iterppo.customers.probe import ProbeCustomer
    >>> conversations = check_customer(ProbeCustomer)

    Args:
        make: makes a customer: the class, or a function.
        seeds: conversations.
        messages: what the agent says, one after the other; each conversation begins with another one.
        events: whether outcomes are of events; False for amounts, of any size.
        asynchronous: makes the asynchronous form of the same customer, which has to say the same.
        timeout: seconds for an answer of the asynchronous form.

    Returns:
        The conversations, for checks of your own.

    Raises:
        AssertionError: with one line that says what is broken.
        CustomerError: the customer raised an exception, or broke its protocol.
    """
    assert messages and seeds, "there has to be something that the agent says, and a seed"

    def talked(customer: Customer, seed: int) -> Conversation:
        return _talk(customer, seed, messages, events=events, timeout=timeout)

    name = type(make()).__name__
    found = []
    used = make()
    for seed in seeds:
        first = talked(make(), seed)
        for how, customer in (("a new object", make()), ("an object that had another conversation", used)):
            again = talked(customer, seed)
            assert again == first, f"{name} (seed {seed}): {how} answers otherwise: {_difference(first, again)}"
        found.append(first)
    try:
        copy = pickle.loads(pickle.dumps(make()))  # what was written a moment ago, by this very process
    except Exception as error:
        raise AssertionError(f"{name} cannot be pickled, which other processes need: {error}") from error
    for before in found[:1]:
        assert talked(copy, before.seed or 0) == before, f"{name}: a pickled copy answers otherwise"
    if asynchronous is not None:
        assert waits(asynchronous()), f"{type(asynchronous()).__name__} has no async def method"
        for before in found:
            again = talked(asynchronous(), before.seed or 0)
            assert again == before, f"{name} (seed {before.seed}): the asynchronous form answers otherwise"
    return found


def _talk(customer: Customer, seed: int, messages: Sequence[str], *, events: bool, timeout: float) -> Conversation:
    talk = Talk(customer, seed, events=events, timeout=timeout)
    with SideBySide() as side_by_side:
        waiting = waits(customer)
        _raise(side_by_side.run([talk.open()], waiting=waiting))
        while not talk.done:
            text = messages[(seed + len(talk.turns)) % len(messages)]
            _raise(side_by_side.run([talk.answer(Suggestion(text, (), (), "test"))], waiting=waiting))
    return talk.conversation(f"seed-{seed}", "test")


def _raise(errors: Sequence[Exception | None]) -> None:
    for error in errors:
        if error is not None:
            raise error


def _difference(first: Conversation, second: Conversation) -> str:
    for number, (one, two) in enumerate(zip(first.turns, second.turns, strict=False), start=1):
        if one != two:
            heard = [(turn.customer, turn.message, turn.reward) for turn in (one, two)]
            return f"turn {number}: {heard[0]!r} and then {heard[1]!r}"
    return f"{len(first.turns)} turns and then {len(second.turns)}, ending {first.closing!r} and {second.closing!r}"
