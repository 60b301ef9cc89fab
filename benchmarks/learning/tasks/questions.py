"""A guessing game: three questions tell eight animals apart; a wrong guess ends it.

What pays is to gather information first and to remember all of it: no single answer says anything about the outcome.
"""

from __future__ import annotations

import random
from itertools import pairwise, product
from typing import Final

from lightning_iterppo.conversation import Conversation
from lightning_iterppo.customers import CustomerReply, Message
from lightning_iterppo.customers.scripted import log_seed, play

#: What tells animals apart.
ATTRIBUTES: Final = ("big", "wild", "fast")
#: What does not: it is true of half of every kind.
_USELESS: Final = "old"
#: The animal that is big or not, wild or not, fast or not.
ANIMALS: Final = dict(
    zip(
        product((True, False), repeat=3),
        ("tiger", "bear", "horse", "cow", "fox", "toad", "cat", "snail"),
        strict=True,
    )
)
_QUESTIONS: Final = tuple(f"is it {word} ?" for word in (*ATTRIBUTES, _USELESS))
_GUESSES: Final = tuple(f"is it the {animal} ?" for animal in ANIMALS.values())
_OPENINGS: Final = ("guess my animal", "i think of an animal")
#: Every word.
VOCABULARY: Final = sorted(
    {
        word
        for text in (*_QUESTIONS, *_GUESSES, *_OPENINGS, "yes", "no", "what ?", "right", "wrong")
        for word in text.split()
    }
)
_MESSAGES: Final = 5


class Customer:
    """Somebody who thinks of an animal."""

    def reset(self, seed: int) -> str:
        """Thinks of one."""
        rng = random.Random(seed)
        kind = rng.choice(tuple(ANIMALS))
        self._true = {word for word, holds in zip(ATTRIBUTES, kind, strict=True) if holds}
        if rng.random() < 0.5:
            self._true.add(_USELESS)
        self._animal = ANIMALS[kind]
        return rng.choice(_OPENINGS)

    def reply(self, history: list[Message]) -> CustomerReply:
        """Answers a question; a guess ends the game."""
        said = history[-1].content
        if said in _GUESSES:
            right = said == f"is it the {self._animal} ?"
            return CustomerReply("right" if right else "wrong", reward=float(right), done=True)
        if sum(message.role == "agent" for message in history) == _MESSAGES:
            return CustomerReply("wrong", done=True)
        if said in _QUESTIONS:
            return CustomerReply("yes" if said.split()[2] in self._true else "no")
        return CustomerReply("what ?")


def _known(history: list[Message]) -> dict[str, bool]:
    """What was asked and answered."""
    found = {}
    for asked, answer in pairwise(history):
        if asked.role == "agent" and asked.content in _QUESTIONS and answer.content in ("yes", "no"):
            found[asked.content.split()[2]] = answer.content == "yes"
    return found


def _best(history: list[Message], rng: random.Random) -> str:
    """Asks what is not known yet, then guesses."""
    known = _known(history)
    open_ = [word for word in ATTRIBUTES if word not in known]
    if open_:
        return f"is it {rng.choice(open_)} ?"
    kind = tuple(known[word] for word in ATTRIBUTES)
    return f"is it the {ANIMALS[kind[0], kind[1], kind[2]]} ?"


def logs(conversations: int, seed: int, skill: float = 0.6) -> list[Conversation]:
    """Logged conversations of a player that does the right thing with probability ``skill``, else anything."""
    rng = random.Random(seed)

    def respond(system: str, history: list[Message]) -> str:
        return _best(history, rng) if rng.random() < skill else rng.choice((*_QUESTIONS, *_GUESSES))

    customer = Customer()
    return [play(customer, respond, log_seed(seed, index), f"questions-{index:06d}") for index in range(conversations)]
