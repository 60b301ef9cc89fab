"""Haggling over a price: the outcome is the price over the largest there is, and 0 when the buyer leaves.

The buyer's first offer and manner say something about the hidden limit. Asking high first brings better offers later,
asking too often or going up loses the buyer: what pays depends on what was said before, in both directions.
"""

from __future__ import annotations

import random
from typing import Final

from lightning_iterppo.conversation import Conversation
from lightning_iterppo.customers import CustomerReply, Message
from lightning_iterppo.customers.scripted import log_seed, play

_NUMBERS: Final = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_VALUE: Final = {word: number for number, word in enumerate(_NUMBERS, start=2)}
_WORD: Final = {number: word for word, number in _VALUE.items()}
#: The highest price, which the outcome is measured in.
HIGHEST: Final = 12
_DEAL: Final = "deal"
_ASKS: Final = tuple(f"i want {word}" for word in _NUMBERS)
#: How each manner opens.
_OPENINGS: Final = {"hurried": "quick please i give {}", "calm": "nice thing i give {}"}
_TEXTS: Final = (*_OPENINGS.values(), *_ASKS, _DEAL, "too much i give", "sold", "bye", "what ? i give")
#: Every word.
VOCABULARY: Final = sorted({word for text in _TEXTS for word in text.split() if word != "{}"} | set(_NUMBERS))
_MESSAGES: Final = 5


class Customer:
    """A buyer with a limit of 5 to 12.

    ======= ============================================== =================== =====================
    manner  first offer                                    every refused ask   leaves after
    ======= ============================================== =================== =====================
    hurried half the limit, or one more                    offers one more     one or two refused asks
    calm    half the limit, or one less                    offers two more     three or four
    ======= ============================================== =================== =====================

    An ask up to the limit is taken. An ask above the one before is an insult and ends it.
    """

    def reset(self, seed: int) -> str:
        """Draws who it is, and makes the first offer."""
        rng = random.Random(seed)
        self._limit = rng.randint(5, HIGHEST)
        manner = rng.choice(tuple(_OPENINGS))
        hurried = manner == "hurried"
        self._offer = max(2, self._limit // 2 + rng.choice((0, 1) if hurried else (-1, 0)))
        self._step = 1 if hurried else 2
        self._patience = rng.choice((1, 2) if hurried else (3, 4))
        self._asked = HIGHEST + 1
        return _OPENINGS[manner].format(_WORD[self._offer])

    def reply(self, history: list[Message]) -> CustomerReply:
        """Takes it, offers more, or leaves."""
        said = history[-1].content
        if said == _DEAL:
            return self._sold(self._offer)
        last = sum(message.role == "agent" for message in history) == _MESSAGES
        if said not in _ASKS:
            return CustomerReply("bye", done=True) if last else CustomerReply(f"what ? i give {_WORD[self._offer]}")
        price = _VALUE[said.split()[-1]]
        insulted, self._asked = price > self._asked, price
        if insulted:
            return CustomerReply("bye", done=True)
        if price <= self._limit:
            return self._sold(max(price, self._offer))
        self._patience -= 1
        if self._patience < 0 or last:
            return CustomerReply("bye", done=True)
        self._offer = min(self._offer + self._step, self._limit)
        return CustomerReply(f"too much i give {_WORD[self._offer]}")

    @staticmethod
    def _sold(price: int) -> CustomerReply:
        return CustomerReply("sold", reward=price / HIGHEST, done=True)


def logs(conversations: int, seed: int) -> list[Conversation]:
    """Logged conversations of a seller who asks any price, goes down from there, and takes an offer now and then."""
    rng = random.Random(seed)

    def respond(system: str, history: list[Message]) -> str:
        asked = [_VALUE[m.content.split()[-1]] for m in history if m.role == "agent" and m.content in _ASKS]
        if rng.random() < (0.4 if asked else 0.1):
            return _DEAL
        highest = asked[-1] if asked and rng.random() < 0.9 else HIGHEST
        return f"i want {_WORD[rng.randint(2, highest)]}"

    customer = Customer()
    return [play(customer, respond, log_seed(seed, index), f"haggling-{index:06d}") for index in range(conversations)]
