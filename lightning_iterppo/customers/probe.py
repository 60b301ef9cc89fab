"""Plays a guest of a café whose best answers are known: two short agent messages, and only the last one can pay.

The first word decides whether the second can pay, and the first turn itself earns nothing: an agent that looks at
immediate rewards learns nothing about it. The second word depends on both messages of the guest. With every answer right
each conversation ends well, so a run's outcome rate can be held against `ProbeCustomer.optimum`.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Final

from lightning_iterppo.customers import CustomerReply, Message

__all__ = ["ORDERS", "TOPICS", "WORDS", "ProbeCustomer"]

#: What to offer a guest, by how the guest feels.
TOPICS: Final[Mapping[str, str]] = {"thirsty": "drink", "hungry": "food"}
#: What to bring, by how the guest feels and what the guest asks for then.
ORDERS: Final[Mapping[tuple[str, str], str]] = {
    ("thirsty", "hot"): "tea",
    ("thirsty", "cold"): "juice",
    ("hungry", "hot"): "soup",
    ("hungry", "cold"): "salad",
}
_TEMPERATURES: Final = ("hot", "cold")
#: Every word that the guest says or listens for.
WORDS: Final[tuple[str, ...]] = (*TOPICS, *TOPICS.values(), *_TEMPERATURES, "yes", "no", "thanks", *ORDERS.values())


class ProbeCustomer:
    """A guest who is thirsty or hungry, and wants something hot or cold.

    ====== =========================== ===========================================================
    turn   the guest says              the right answer
    ====== =========================== ===========================================================
    first  ``thirsty``, ``hungry``     ``drink``, ``food``
    second ``yes hot``, ``yes cold``   ``tea``, ``juice`` to drink; ``soup``, ``salad`` to eat
    ====== =========================== ===========================================================

    The guest takes the first word that answers the question and ignores the rest of the message, so chance finds the
    way now and then, and naming everything does not help. After a wrong first answer the guest says ``no`` instead of
    ``yes``, and nothing pays any more. The outcome is 1 if both answers were right.
    """

    #: The outcome rate of the best agent there is.
    optimum: ClassVar[float] = 1.0

    def __init__(self) -> None:
        self._mood = ""
        self._temperature = ""

    def reset(self, seed: int) -> str:
        """Starts a conversation: draws how the guest feels and what the guest will ask for."""
        rng = random.Random(seed)
        self._mood = rng.choice(tuple(TOPICS))
        self._temperature = rng.choice(_TEMPERATURES)
        return self._mood

    def reply(self, history: list[Message]) -> CustomerReply:
        """Asks for hot or cold after the first answer; leaves after the second."""
        said = [message.content for message in history if message.role == "agent"]
        understood = _first(said[0], TOPICS.values()) == TOPICS[self._mood]
        if len(said) == 1:
            return CustomerReply(f"{'yes' if understood else 'no'} {self._temperature}")
        paid = understood and _first(said[1], ORDERS.values()) == ORDERS[self._mood, self._temperature]
        return CustomerReply("thanks" if paid else "no thanks", reward=float(paid), done=True)

    @staticmethod
    def best_answer(history: Sequence[Message]) -> str:
        """What the best agent says next."""
        mood, *more = (message.content for message in history if message.role == "customer")
        return ORDERS[mood, more[0].split()[-1]] if more else TOPICS[mood]


def _first(message: str, known: Iterable[str]) -> str | None:
    """The first word of a message that is one of those known."""
    known = set(known)
    return next((word for word in message.split() if word in known), None)
