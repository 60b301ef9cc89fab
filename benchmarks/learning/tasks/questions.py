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

#: What tells animals apart, and what it can be.
ATTRIBUTES: Final = {"size": ("big", "small"), "temper": ("wild", "tame"), "speed": ("fast", "slow")}
#: What does not: half of every kind are the one, half the other.
_USELESS: Final = {"age": ("old", "young")}
_ASKED: Final = {**ATTRIBUTES, **_USELESS}
#: The animal that is big or small, wild or tame, fast or slow.
ANIMALS: Final = dict(
    zip(
        product(*ATTRIBUTES.values()),
        ("tiger", "bear", "horse", "cow", "fox", "toad", "cat", "snail"),
        strict=True,
    )
)
_QUESTIONS: Final = {f"what {name} ?": name for name in _ASKED}
_GUESSES: Final = tuple(f"is it the {animal} ?" for animal in ANIMALS.values())
_OPENINGS: Final = ("guess my animal", "i think of an animal")
#: Every word.
VOCABULARY: Final = sorted(
    {
        word
        for text in (*_QUESTIONS, *_GUESSES, *_OPENINGS, "it is", "what ?", "right", "wrong")
        for word in text.split()
    }
    | {word for words in _ASKED.values() for word in words}
)
_MESSAGES: Final = 5


class Customer:
    """Somebody who thinks of an animal."""

    def reset(self, seed: int) -> str:
        """Thinks of one."""
        rng = random.Random(seed)
        kind = rng.choice(tuple(ANIMALS))
        self._is = dict(zip(ATTRIBUTES, kind, strict=True)) | {"age": rng.choice(_USELESS["age"])}
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
            return CustomerReply(f"it is {self._is[_QUESTIONS[said]]}")
        return CustomerReply("what ?")


def _known(history: list[Message]) -> dict[str, str]:
    """What was asked and answered."""
    found = {}
    for asked, answer in pairwise(history):
        if asked.role == "agent" and asked.content in _QUESTIONS:
            found[_QUESTIONS[asked.content]] = answer.content.split()[-1]
    return found


def _best(history: list[Message], rng: random.Random) -> str:
    """Asks what is not known yet, then guesses."""
    known = _known(history)
    open_ = [name for name in ATTRIBUTES if name not in known]
    if open_:
        return f"what {rng.choice(open_)} ?"
    kind = tuple(known[name] for name in ATTRIBUTES)
    return f"is it the {ANIMALS[kind[0], kind[1], kind[2]]} ?"


def logs(conversations: int, seed: int, skill: float = 0.6) -> list[Conversation]:
    """Logged conversations of a player that does the right thing with probability ``skill``, else anything."""
    rng = random.Random(seed)

    def respond(system: str, history: list[Message]) -> str:
        return _best(history, rng) if rng.random() < skill else rng.choice((*_QUESTIONS, *_GUESSES))

    customer = Customer()
    return [play(customer, respond, log_seed(seed, index), f"questions-{index:06d}") for index in range(conversations)]
