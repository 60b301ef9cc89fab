"""The templated shop with a person before it, who accepts, edits or rejects what is suggested."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "learning"))

from tasks import shop

from lightning_iterppo.customers import Message, Sent

logs = shop.logs
#: How often a wrong suggestion is noticed, by the customer's patience: the person sees who it is, which no message
#: says, and takes more trouble over customers who seem worth it.
NOTICED: Final = {1: 0.3, 2: 0.7}
#: How often a right one is put aside all the same, and how often the person's own message is the right one.
PUT_ASIDE, OWN_SKILL = 0.05, 0.6


class Customer(shop.Customer):
    """A customer of the shop, and the salesperson to whom the suggestions are made."""

    def reset(self, seed: int) -> str:
        """Draws both."""
        opening = super().reset(seed)
        self._care = NOTICED[self._patience]
        self._person = random.Random(seed + 1_000_003)  # not the customer's own draws
        return opening

    def review(self, history: list[Message]) -> Sent:
        """Sends what seems right; corrects the product or the answer; or says something else."""
        suggestion = history[-1].content
        right = shop.best_message(history[:-1], self._person)
        same_step = _step(suggestion) == _step(right)
        if suggestion == right or (same_step and _step(right) in ("question", "order")):
            aside = self._person.random() < PUT_ASIDE
            return self.own_message(right) if aside else Sent(suggestion)
        if self._person.random() >= self._care:
            return Sent(suggestion)
        return Sent(right, "edited") if same_step else self.own_message(right)

    def own_message(self, right: str) -> Sent:
        """What the person says in place of a suggestion."""
        skilled = self._person.random() < OWN_SKILL
        return Sent(right if skilled else self._person.choice(shop.AGENT_MESSAGES), "rejected")


def _step(text: str) -> str | None:
    """Which step of a sale a message is; None for what is no message of an agent."""
    steps = {"question": shop.QUESTIONS, "order": shop.ORDERS, "answer": shop.ANSWERS.values()}
    if text.startswith("take the "):
        return "product"
    return next((step for step, messages in steps.items() if text in messages), None)
