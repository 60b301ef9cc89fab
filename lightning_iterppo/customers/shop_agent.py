"""Sells in the shop by script, as well or as badly as its skill says, and writes the starting logs.

``python -m lightning_iterppo.customers.shop_agent`` prints the outcome rates of several skills with 95 % intervals.
"""

from __future__ import annotations

import argparse
import random
import re
from collections.abc import Callable, Sequence
from typing import Final, Literal, Protocol

from lightning_iterppo.conversation import Conversation
from lightning_iterppo.customers import Message
from lightning_iterppo.customers import shop_phrases as say
from lightning_iterppo.customers.scripted import log_seed, play
from lightning_iterppo.customers.shop import MAX_AGENT_MESSAGES, Products, ShopCustomer
from lightning_iterppo.customers.shop_phrases import FAMILIES, Family
from lightning_iterppo.evaluation import rates

__all__ = [
    "DEFAULT_SKILL",
    "GreedySalesperson",
    "Salesperson",
    "ScriptedSalesperson",
    "outcome_rate",
    "scripted_logs",
]

# Where the salespeople's seeds begin, so that no salesperson draws the same numbers as its customer.
AGENT_SEEDS: Final = 1_000_000_000
# A skill drawn from this range for each conversation gives about 35 % outcomes.
DEFAULT_SKILL: Final = (0.2, 0.75)

ASK_NEED: Final[tuple[str, ...]] = (
    "What do you need it for?",
    "Happy to help! What are you looking for?",
    "Sure! What will you use it for?",
    "Which sport is it for?",
    "Welcome! What do you have in mind?",
    "Of course. What kind of sport do you do?",
    "Gladly. What are you planning to do?",
    "What would you like to use it for?",
    "I can help you with that. What is it for?",
)
PITCH: Final[tuple[str, ...]] = (
    "I'd suggest the {name}. It's {attribute} and costs ${price}.",
    "The {name} is just right for {use}. It's ${price}.",
    "For {use} I'd take the {name} at ${price}.",
    "Then the {name} is for you. It's {attribute}, and it costs ${price}.",
    "Have a look at the {name}. It's ${price}.",
    "My pick for {use} is the {name}, for ${price}.",
    "You'd like the {name}. It's {attribute} and perfect for {use}.",
    "We have the {name} for that. It's {attribute}.",
    "I recommend the {name} for {use}. It's ${price}.",
)
ANSWERS: Final[dict[Family, tuple[str, ...]]] = {
    "price": (
        "I can give you a ten percent discount.",
        "You can pay in three instalments.",
        "It's worth every dollar, believe me.",
        "Today you get ten percent off.",
        "You could pay monthly, without interest.",
        "We can spread the cost over six months.",
        "I'd be glad to knock ten dollars off.",
        "It's on sale this week, so it's good value.",
    ),
    "quality": (
        "It comes with a two-year warranty.",
        "It has been tested by our own team.",
        "It's very durable, and people love it.",
        "We guarantee it for five years.",
        "It's well made and very strong.",
        "It's built to be used every day.",
        "It holds up well, even after years.",
        "You get a three-year warranty with it.",
    ),
    "delivery": (
        "It ships tomorrow.",
        "You'll have it in two days.",
        "We deliver within two working days.",
        "It would arrive the day after tomorrow.",
        "Our courier brings it within three days.",
        "We ship today, so it takes two days.",
        "Delivery takes just two days.",
        "It can be at your door tomorrow.",
    ),
    "returns": (
        "You can return it within 30 days.",
        "You get your money back within thirty days.",
        "Just bring it back, and we refund you.",
        "We take it back for a full month, no questions asked.",
        "You can exchange it any time this month.",
        "Then you send it back and get a full refund.",
        "Returns are free for 30 days.",
        "If you change your mind, we return your money.",
    ),
}
ASK_CONTACT: Final[tuple[str, ...]] = (
    "Great! What's your email?",
    "Shall I reserve one for you?",
    "Could I have your phone number?",
    "Would you like to order it now?",
    "May I put your name down for one?",
    "What email can I use for the order?",
    "Shall I put one aside for you?",
    "What's the best number to reach you?",
    "Can I take your order?",
    "Wonderful. Do you want to buy it today?",
)
FILLER: Final[tuple[str, ...]] = (
    "We have many good things here.",
    "Our customers are very happy with us.",
    "That's a great question.",
    "We're the best shop in town.",
    "Everything we sell is great.",
    "I see what you mean.",
    "Take your time, there's no rush.",
    "I'm always here to help you.",
    "There is a lot to choose from.",
)
CHAT: Final[tuple[str, ...]] = (
    "Hello and welcome!",
    "Hi, it's nice to see you!",
    "What a lovely day it is.",
    "Thanks for coming in today!",
    "Good day to you, and welcome!",
    "The weather is really nice today.",
    "Hello there, I'm glad you came by.",
    "Hey, it's a pleasure to meet you.",
)

# One article: its use, name, attribute and price, as the briefing has it.
_STOCK: Final = re.compile(r"(?P<use>[a-z]+): (?P<name>[A-Z][\w ]*), (?P<attribute>[\w ]+), \$(?P<price>\d+)\.")

State = Literal["need", "product", "order"] | Family
Act = Literal["need", "pitch", "wrong pitch", "answer", "wrong answer", "contact", "filler", "chat"]
# What an unskilled salesperson does instead of the right thing, with weights. They know their stock and their terms, as
# real ones do: what they lack is the sense of what this customer needs to hear now.
_MISTAKES: Final[dict[str, dict[Act, int]]] = {
    "need": {"contact": 4, "filler": 3, "chat": 2, "wrong pitch": 1},
    "product": {"contact": 4, "filler": 3, "need": 2, "wrong pitch": 1},
    "answer": {"contact": 4, "filler": 3, "pitch": 2, "wrong answer": 1},
    "order": {"filler": 4, "chat": 2, "pitch": 2, "wrong answer": 2},
}


def _heard_as(phrasings: Sequence[str]) -> re.Pattern[str]:
    """A pattern that finds any of the phrasings, whatever was filled in."""
    patterns = (re.sub(r"\\{\w+\\}", r"[\\w ]+", re.escape(phrasing)) for phrasing in phrasings)
    return re.compile("|".join(patterns))


_SATISFIED: Final = _heard_as((*say.SATISFIED, *say.READY_AGAIN))
_ASKED: Final[dict[Family, re.Pattern[str]]] = {
    family: _heard_as((*say.OBJECTIONS[family], *(say.PRICE_OVER if family == "price" else ()))) for family in FAMILIES
}


class Salesperson(Protocol):
    """Anything that can talk to a customer."""

    def respond(self, system: str, history: list[Message]) -> str:
        """The next agent message, from the briefing and the messages so far."""


class ScriptedSalesperson:
    """Does the right thing with probability ``skill`` and a typical mistake otherwise.

    It knows only what an agent can see: the briefing and the messages.

    Args:
        skill: probability of the right act, for each message.
        seed: of its choices.
    """

    def __init__(self, skill: float, seed: int) -> None:
        if not 0.0 <= skill <= 1.0:
            raise ValueError(f"skill must be between 0 and 1, found {skill}")
        self.skill = skill
        self._rng = random.Random(seed)

    def respond(self, system: str, history: list[Message]) -> str:
        """The next agent message."""
        stock = [match.groupdict() for match in _STOCK.finditer(system)]
        heard = [m.content for m in history if m.role == "customer"]
        fitting = next((item for text in reversed(heard) for item in stock if _mentions(text, item["use"])), None)
        state = _state(heard, fitting is not None)
        stage = "answer" if state in FAMILIES else state
        if self._rng.random() < self.skill:
            right: dict[str, Act] = {"need": "need", "product": "pitch", "answer": "answer", "order": "contact"}
            act = right[stage]
        else:
            mistakes = _MISTAKES[stage]
            act = self._rng.choices(list(mistakes), weights=list(mistakes.values()))[0]
        said = {m.content for m in history if m.role == "agent"}
        return self._pick(self._lines(act, state, stock, fitting), said)

    def _lines(
        self, act: Act, state: State, stock: Sequence[dict[str, str]], fitting: dict[str, str] | None
    ) -> Sequence[str]:
        """All the ways to do an act."""
        if act in ("pitch", "wrong pitch"):
            if act == "pitch" and fitting is not None:
                chosen = fitting
            else:
                chosen = self._rng.choice([item for item in stock if item is not fitting] or list(stock))
            return [line.format(**chosen) for line in PITCH]
        if act in ("answer", "wrong answer"):
            families = [f for f in FAMILIES if (f == state) == (act == "answer")]
            return ANSWERS[self._rng.choice(families)]
        lines: dict[str, Sequence[str]] = {"need": ASK_NEED, "contact": ASK_CONTACT, "filler": FILLER, "chat": CHAT}
        return lines[act]

    def _pick(self, lines: Sequence[str], said: set[str]) -> str:
        return self._rng.choice([line for line in lines if line not in said] or list(lines))


class GreedySalesperson:
    """Asks for the contact at once, always: the shortcut that must not pay.

    Args:
        seed: of its phrasings.
    """

    def __init__(self, seed: int = 0) -> None:
        self._rng = random.Random(seed)

    def respond(self, system: str, history: list[Message]) -> str:
        """An ask for a contact or an order, in words not yet used."""
        said = {m.content for m in history if m.role == "agent"}
        return self._rng.choice([line for line in ASK_CONTACT if line not in said] or list(ASK_CONTACT))


def _mentions(text: str, word: str) -> bool:
    return re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) is not None


def _state(heard: Sequence[str], need_known: bool) -> State:
    """What the customer waits for, by the last message that tells."""
    for text in reversed(heard):
        if _SATISFIED.search(text):
            return "order"
        for family, pattern in _ASKED.items():
            if pattern.search(text):
                return family
    return "product" if need_known else "need"


def scripted_logs(
    conversations: int, seed: int, skill: tuple[float, float] = DEFAULT_SKILL, products: Products = "train"
) -> list[Conversation]:
    """Logged conversations of scripted salespeople of mixed skill.

    Args:
        conversations: how many.
        seed: of everything; other seeds meet other customers, and none meets those of small hand-given seeds.
        skill: the range that each conversation's skill is drawn from.
        products: which products the shop has.
    """
    low, high = skill
    if not 0.0 <= low <= high <= 1.0:
        raise ValueError(f"skill must be a range within 0 and 1, found {skill}")
    rng = random.Random(seed)
    customer = ShopCustomer(products)
    logs = []
    for index in range(conversations):
        drawn = rng.uniform(low, high)
        agent = ScriptedSalesperson(drawn, rng.getrandbits(32))
        name, metadata = f"shop-logs-{index:06d}", {"skill": round(drawn, 4)}
        logs.append(play(customer, agent.respond, log_seed(seed, index), name, metadata))
    return logs


def outcome_rate(
    agent: Callable[[int], Salesperson], conversations: int, products: Products = "train"
) -> tuple[float, float, float]:
    """The outcome rate and its 95 % Wilson interval over the customers 0, 1, 2, ….

    Args:
        agent: makes the salesperson of a conversation from a seed, another one than the customer's.
        conversations: how many.
        products: which products the shop has.
    """
    if conversations < 1:
        raise ValueError(f"conversations must be at least 1, found {conversations}")
    customer = ShopCustomer(products)
    played = [
        play(customer, agent(AGENT_SEEDS + seed).respond, seed, f"shop-{seed:06d}") for seed in range(conversations)
    ]
    found = rates.outcome_rate(played)
    return found.outcome_rate, *found.ci95


def main() -> None:
    """Prints the table of outcome rates."""
    parser = argparse.ArgumentParser(description="Outcome rates of the shop's scripted salespeople.")
    parser.add_argument("--conversations", type=int, default=1000, help="for each figure (default 1000)")
    count: int = parser.parse_args().conversations
    agents: dict[str, Callable[[int], Salesperson]] = {
        f"skill {skill}": lambda seed, skill=skill: ScriptedSalesperson(skill, seed)  # type: ignore[misc]
        for skill in (0.0, 0.5, 0.7, 0.9, 1.0)
    }
    agents["mixed"] = lambda seed: ScriptedSalesperson(random.Random(seed + AGENT_SEEDS).uniform(*DEFAULT_SKILL), seed)
    agents["greedy"] = GreedySalesperson
    print(
        f"{'':<10} {'train':<24} held-out   ({count} conversations each, at most {MAX_AGENT_MESSAGES} agent messages)"
    )
    for name, agent in agents.items():
        cells = []
        for products in ("train", "held-out"):
            rate, low, high = outcome_rate(agent, count, products)
            cells.append(f"{rate:6.1%} [{low:6.1%}, {high:6.1%}]")
        print(f"{name:<10} {cells[0]:<24} {cells[1]}")


if __name__ == "__main__":
    main()
