"""A shop in templates: understand the need, name the product, answer the objection, then ask for the order.

Nothing pays before the last step, every step needs the ones before it, and a step at the wrong time costs patience.
"""

from __future__ import annotations

import random
from itertools import product
from typing import Final

from lightning_iterppo.conversation import Conversation
from lightning_iterppo.customers import CustomerReply, Message
from lightning_iterppo.customers.scripted import log_seed, play

#: What fits an activity and a wish.
PRODUCTS: Final = dict(
    zip(
        product(("run", "swim", "climb"), ("cheap", "light", "warm")),
        ("jogger", "feather", "fleece", "wave", "fin", "seal", "grip", "gecko", "yak"),
        strict=True,
    )
)
#: What answers an objection.
ANSWERS: Final = {"fit": "you can return it", "last": "it has a guarantee", "wait": "it is in stock"}
_OBJECTIONS: Final = {"fit": "will it fit ?", "last": "will it last ?", "wait": "must i wait ?"}
QUESTIONS: Final = ("what is it for ?", "what do you want to do ?")
ORDERS: Final = ("shall i order it ?", "do you want to buy it ?")
_OPENINGS: Final = ("hi", "hello there", "hi i look around")
_PUZZLED: Final = ("hm what ?", "that does not help")
AGENT_MESSAGES: Final = (*QUESTIONS, *ORDERS, *(f"take the {name}" for name in PRODUCTS.values()), *ANSWERS.values())
_CUSTOMER: Final = (*_OPENINGS, *_PUZZLED, *_OBJECTIONS.values(), "to and it should be", "good", "yes please", "bye no")
#: Every word.
VOCABULARY: Final = sorted(
    {word for text in (*AGENT_MESSAGES, *_CUSTOMER) for word in text.split()} | {w for pair in PRODUCTS for w in pair}
)
_MESSAGES: Final = 6


class Customer:
    """Somebody with a need, an objection or none, and some patience."""

    def reset(self, seed: int) -> str:
        """Draws who it is, and greets."""
        rng = random.Random(seed)
        self._need = rng.choice(sorted(PRODUCTS))
        self._objection = rng.choice((*ANSWERS, None))
        self._patience = rng.choice((1, 2))
        self._eager = rng.random() < 0.1  # buys whatever it is asked to
        self._rng = rng
        self._stage = 0  # 0 nothing known, 1 need said, 2 product named, 3 nothing in the way
        return rng.choice(_OPENINGS)

    def reply(self, history: list[Message]) -> CustomerReply:
        """Goes a step on after the right message, and loses patience after any other."""
        said = history[-1].content
        last = sum(message.role == "agent" for message in history) == _MESSAGES
        if said in ORDERS and (self._stage == 3 or self._eager):
            return CustomerReply("yes please", reward=1.0, done=True)
        answer = self._step(said)
        if answer is None:
            self._patience -= 1
            answer = self._rng.choice(_PUZZLED)
        if self._patience < 0 or last:
            return CustomerReply("bye no", done=True)
        return CustomerReply(answer)

    def _step(self, said: str) -> str | None:
        if self._stage == 0 and said in QUESTIONS:
            self._stage = 1
            return f"to {self._need[0]} and it should be {self._need[1]}"
        if self._stage == 1 and said == f"take the {PRODUCTS[self._need]}":
            self._stage = 3 if self._objection is None else 2
            return "good" if self._objection is None else _OBJECTIONS[self._objection]
        if self._stage == 2 and self._objection is not None and said == ANSWERS[self._objection]:
            self._stage = 3
            return "good"
        return None


def best_message(history: list[Message], rng: random.Random) -> str:
    """The right next message."""
    heard = [message.content for message in history if message.role == "customer"]
    needs = [text.split() for text in heard if text.startswith("to ")]
    if not needs:
        return rng.choice(QUESTIONS)
    if "good" in heard:
        return rng.choice(ORDERS)
    for kind, objection in _OBJECTIONS.items():
        if objection in heard:
            return ANSWERS[kind]
    return f"take the {PRODUCTS[needs[0][1], needs[0][-1]]}"


def logs(conversations: int, seed: int, skill: float = 0.45) -> list[Conversation]:
    """Logged conversations of an agent that says the right thing with probability ``skill``, else anything."""
    rng = random.Random(seed)

    def respond(system: str, history: list[Message]) -> str:
        return best_message(history, rng) if rng.random() < skill else rng.choice(AGENT_MESSAGES)

    customer = Customer()
    return [play(customer, respond, log_seed(seed, index), f"shop-{index:06d}") for index in range(conversations)]
