"""Plays a guest of a café whose best answers are known: two agent messages of one word each, and only the last can pay.

The first word decides whether the second can pay, and the first turn itself earns nothing: an agent that looks at
immediate rewards learns nothing about it. The second word depends on both messages of the guest. With every answer
right each conversation ends well, so a run's outcome rate can be held against `ProbeCustomer.optimum`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import ClassVar, Final

from lightning_iterppo.conversation import Conversation
from lightning_iterppo.customers import CustomerReply, Message
from lightning_iterppo.customers.scripted import log_seed, play

__all__ = ["ORDERS", "TOPICS", "WORDS", "ProbeCustomer", "scripted_logs"]

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
WORDS: Final[tuple[str, ...]] = (*TOPICS, *TOPICS.values(), "okay", "hmm", *_TEMPERATURES, *ORDERS.values(), "thanks")


class ProbeCustomer:
    """A guest who is thirsty or hungry, and wants something hot or cold.

    ====== ============================ =========================================================
    turn   the guest says               the right answer
    ====== ============================ =========================================================
    first  ``thirsty``, ``hungry``      ``drink``, ``food``
    second ``okay hot``, ``okay cold``  ``tea``, ``juice`` to drink; ``soup``, ``salad`` to eat
    ====== ============================ =========================================================

    An answer is right if it is that word and no other. After a wrong first answer the guest says ``hmm`` instead of
    ``okay``, and nothing pays any more. The outcome is 1 if both answers were right, and the last turn earns it.
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
        served = said[0] == TOPICS[self._mood]
        if len(said) == 1:
            return CustomerReply(f"{'okay' if served else 'hmm'} {self._temperature}")
        paid = served and said[1] == ORDERS[self._mood, self._temperature]
        return CustomerReply("thanks" if paid else "hmm", reward=float(paid), done=True)

    @staticmethod
    def best_answer(history: Sequence[Message]) -> str:
        """What the best agent says next."""
        mood, *more = (message.content for message in history if message.role == "customer")
        return ORDERS[mood, more[0].split()[-1]] if more else TOPICS[mood]


def scripted_logs(conversations: int, seed: int) -> list[Conversation]:
    """Logged conversations of an agent that knows which words answer which turn, and takes any of them by chance.

    One in eight of them ends well: they teach how to speak, and nothing about what to say.

    Args:
        conversations: how many.
        seed: of the guests and of the agent.
    """
    rng = random.Random(seed)

    def respond(system: str, history: list[Message]) -> str:
        return rng.choice(tuple((TOPICS if len(history) == 1 else ORDERS).values()))

    customer = ProbeCustomer()
    return [play(customer, respond, log_seed(seed, index), f"probe-logs-{index:06d}") for index in range(conversations)]
