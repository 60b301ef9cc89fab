"""Plays a shop's customer: a hidden need, budget, question and mood, answering an agent in short English sentences.

The way to a sale is to find out the need, name the one fitting product, answer the customer's question and then ask for
a contact or an order, each at its turn. Everything is drawn from ``random.Random(seed)``.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final, Literal

from lightning_iterppo.customers import CustomerReply, Message
from lightning_iterppo.customers import shop_phrases as say
from lightning_iterppo.customers.shop_language import AgentActs, follows, understand
from lightning_iterppo.customers.shop_phrases import FAMILIES, Family, Mood
from lightning_iterppo.customers.shop_products import HELD_OUT_PRODUCTS, TRAIN_PRODUCTS, Product

__all__ = ["MAX_AGENT_MESSAGES", "Products", "ShopCustomer", "catalogue"]

Products = Literal["train", "held-out"]
# What the customer is waiting for: to be asked, to be shown something, to get an answer, to be asked for the order.
Stage = Literal["need", "product", "answer", "order"]

MAX_AGENT_MESSAGES: Final = 6
PATIENCE: Final[dict[Mood, int]] = {"impatient": 2, "neutral": 3, "friendly": 4}
# How often asking for the contact too early succeeds all the same.
EARLY_LUCK: Final[dict[Stage, float]] = {"need": 0.05, "product": 0.1, "answer": 0.2}
EARLY_COST: Final = 2
_ALL_NAMES: Final = tuple(p.name for p in (*TRAIN_PRODUCTS, *HELD_OUT_PRODUCTS))


def catalogue(products: Products) -> tuple[Product, ...]:
    """The products of a set: those of training, or those that training never sees."""
    if products == "train":
        return TRAIN_PRODUCTS
    if products == "held-out":
        return HELD_OUT_PRODUCTS
    raise ValueError(f'products must be "train" or "held-out", found {products!r}')


class ShopCustomer:
    """A customer of a shop for sports gear.

    The outcome is 1 when the customer leaves a contact or buys. Asking for that too early costs two points of patience,
    a message that misses the point costs one; a customer without patience leaves. At most six agent messages.

    Args:
        products: which products the shop has: ``"train"`` or ``"held-out"`` (other names, other needs).
        shelf: how many products are in stock in one conversation; exactly one fits.
    """

    system: str

    def __init__(self, products: Products = "train", shelf: int = 3) -> None:
        self._catalogue = catalogue(products)
        if not 1 <= shelf <= len(self._catalogue):
            raise ValueError(f"shelf must be between 1 and {len(self._catalogue)}, found {shelf}")
        self._shelf = shelf
        self.system = ""
        self._done = True

    def reset(self, seed: int) -> str:
        """Starts a conversation: draws the hidden agenda, sets ``system`` and gives the opening message."""
        rng = self._rng = random.Random(seed)
        shelf = rng.sample(self._catalogue, self._shelf)
        self._need = rng.choice(shelf)
        self._budget = int(round(self._need.price * rng.uniform(0.75, 1.35), -1))
        self._question: Family = rng.choice(FAMILIES)
        self._mood: Mood = rng.choice(("friendly", "neutral", "impatient"))
        self._patience = PATIENCE[self._mood]
        self._budget_told = rng.random() < 0.3
        told, small_talk = rng.random() < 0.25, rng.random() < 0.3
        self._stage: Stage = "product" if told else "need"
        self._greeted = self._done = False
        self._messages = 0
        self._said: set[str] = set()
        stock = " ".join(f"{p.use}: {p.name}, {rng.choice(p.attributes)}, ${p.price}." for p in shelf)
        self.system = f"You sell sports gear. In stock: {stock}"
        if told:
            return self._say(say.NEED_TOLD[self._mood])
        return self._say(say.SMALL_TALK if small_talk and self._mood != "impatient" else say.VAGUE[self._mood])

    def reply(self, history: list[Message]) -> CustomerReply:
        """Answers the last message of ``history``, which is the agent's.

        Raises:
            RuntimeError: there is no running conversation.
            ValueError: the last message is not the agent's.
        """
        if self._done:
            raise RuntimeError("this conversation is over or never began: call reset(seed) first")
        if not history or history[-1].role != "agent":
            raise ValueError("the last message of the history must be the agent's")
        self._messages += 1
        text = history[-1].content
        earlier = [m.content for m in history[:-1] if m.role == "agent"]
        heard = next((m.content for m in reversed(history) if m.role == "customer"), "")
        if follows(text, earlier, heard):
            acts = understand(text, _ALL_NAMES)
            if acts.asks_contact and self._agrees(acts):
                self._done = True
                return CustomerReply(self._contact(text.lower()), reward=1.0, done=True)
            answer = self._answer(acts)
        else:
            self._patience -= 1
            answer = self._say(say.NOT_FOLLOWED)
        if self._patience <= 0 or self._messages >= MAX_AGENT_MESSAGES:
            self._done = True
            return CustomerReply(self._say(say.LEAVING if self._patience <= 0 else say.OUT_OF_TIME), done=True)
        return CustomerReply(answer)

    def _agrees(self, acts: AgentActs) -> bool:
        """Whether the customer gives a contact when asked; too early it is a matter of luck."""
        if self._stage == "order":
            return set(acts.products) <= {self._need.name}
        return self._rng.random() < EARLY_LUCK[self._stage]

    def _answer(self, acts: AgentActs) -> str:
        """Moves on if the message was the right one, and pays patience if it was not."""
        if acts.asks_contact and self._stage != "order":
            self._patience -= EARLY_COST
            return f"{self._say(say.EARLY)} {self._pending()}"
        if self._stage == "need":
            return self._at_need(acts)
        right = set(acts.products) <= {self._need.name}
        if self._stage == "product" and right and acts.products:
            self._stage = "answer"
            question = self._ask()
            return f"{self._say(say.INTEREST)} {question}" if self._rng.random() < 0.5 else question
        if self._stage == "answer" and right and acts.answer == self._question:
            self._stage = "order"
            return self._say(say.SATISFIED)
        self._patience -= 1
        return f"{self._complaint(acts)} {self._pending()}"

    def _at_need(self, acts: AgentActs) -> str:
        if acts.asks_need:
            self._stage = "product"
            told = self._say(say.NEED[self._mood])
            return f"{told} {self._say(say.BUDGET)}" if self._budget_told else told
        if acts.greets and not acts.products and not self._greeted:
            self._greeted = True
            return self._pending()
        self._patience -= 1
        return f"{self._say(say.BLIND if acts.products else say.GENERIC)} {self._pending()}"

    def _complaint(self, acts: AgentActs) -> str:
        """What was wrong with a message that did not move the customer on."""
        others = [name for name in acts.products if name != self._need.name]
        if len(acts.products) > 1:
            return self._say(say.SEVERAL_PRODUCTS)
        if others:
            return self._say(say.WRONG_PRODUCT, named=others[0].split()[-1])
        if self._stage == "answer":
            if len(acts.topics) > 1:
                return self._say(say.SPEECH)
            return self._say(say.NO_FACT if acts.topics == {self._question} else say.IGNORED)
        return self._say(say.TOLD_ALREADY if self._stage == "product" and acts.asks_need else say.GENERIC)

    def _pending(self) -> str:
        """Says again, in other words, what the customer is waiting for."""
        if self._stage == "need":
            return self._say(say.VAGUE_AGAIN)
        if self._stage == "product":
            return self._say(say.NEED_AGAIN)
        return self._ask() if self._stage == "answer" else self._say(say.READY_AGAIN)

    def _ask(self) -> str:
        if self._question == "price" and self._need.price > self._budget:
            return self._say(say.PRICE_OVER)
        return self._say(say.OBJECTIONS[self._question])

    def _contact(self, asked: str) -> str:
        """Gives what was asked for."""
        first, last = self._rng.choice(say.FIRST_NAMES), self._rng.choice(say.LAST_NAMES)
        email = f"{first.lower()}.{last[0].lower()}@example.com"
        if "mail" in asked:
            given = say.CONTACT["email"]
        else:
            given = say.CONTACT["phone" if "phone" in asked or "number" in asked or "call" in asked else "order"]
        return self._say(given, who=f"{first} {last}", email=email, phone=f"555-01{self._rng.randrange(100):02d}")

    def _say(self, phrasings: Sequence[str], **more: str) -> str:
        """One of the phrasings, not one that this customer has used already as long as another is left."""
        fresh = [p for p in phrasings if p not in self._said] or list(phrasings)
        chosen = self._rng.choice(fresh)
        self._said.add(chosen)
        need = self._need
        facts = {"use": need.use, "name": need.name, "noun": need.noun, "price": need.price, "budget": self._budget}
        filled = chosen.format(occasion=self._rng.choice(need.occasions), **facts, **more)
        return filled[0].upper() + filled[1:]
