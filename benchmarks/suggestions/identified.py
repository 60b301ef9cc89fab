"""What a log with dispositions tells, and what it cannot: read off the log, and found by doing it.

``python benchmarks/suggestions/identified.py`` lets an agent of middling skill suggest to the salesperson of
`salesperson.py`, who sees more than the log does, reads three questions' answers off the log, and then does what each
question asks in a world of its own. ``--write`` puts the table into ``docs/suggestions.md``. No model, some seconds.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from salesperson import Customer, shop

from lightning_iterppo.customers import Message, Sent

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pages import fill

PAGE = Path(__file__).resolve().parents[2] / "docs" / "suggestions.md"
CONVERSATIONS: Final = 100_000
#: How often the agent suggests the right thing.
SKILL: Final = 0.5
#: First suggestions, one right and one wrong.
RIGHT, WRONG = shop.QUESTIONS[0], "take the jogger"
Person = Literal["as ever", "accepts", "accepts first", "replaces first"]


@dataclass(frozen=True)
class Talk:
    """A conversation's first suggestion, whether it was sent, whether all were, and the outcome."""

    first: str
    first_sent: bool
    all_sent: bool
    outcome: float


def talk(seed: int, first: str | None = None, person: Person = "as ever") -> Talk:
    """One conversation.

    Args:
        seed: of the customer, the salesperson and the agent.
        first: what the agent is made to suggest first; None leaves it to the agent.
        person: what the salesperson is made to do.
    """
    customer, agent = Customer(), random.Random(seed + 17)
    history = [Message("customer", customer.reset(seed))]
    suggested, sent, outcome, done = [], [], 0.0, False
    while not done:
        right = shop.best_message(history, agent)
        chosen = right if agent.random() < SKILL else agent.choice(shop.AGENT_MESSAGES)
        suggestion = first if first is not None and not suggested else chosen
        history.append(Message("agent", suggestion))
        made = customer.review(history)
        if person == "accepts" or (person == "accepts first" and not suggested):
            made = Sent(suggestion)
        elif person == "replaces first" and not suggested:
            made = customer.own_message(right)
        suggested.append(suggestion)
        sent.append(made.disposition == "accepted")
        history[-1] = Message("agent", made.message)
        reply = customer.reply(history)
        history.append(Message("customer", reply.text))
        outcome, done = outcome + reply.reward, reply.done
    return Talk(suggested[0], sent[0], all(sent), outcome)


def rate(talks: Iterable[Talk], chosen: Callable[[Talk], bool] = lambda one: True) -> float:
    """The mean outcome of those that are chosen."""
    return statistics.fmean(one.outcome for one in talks if chosen(one))


def table() -> str:
    """The three questions as Markdown."""

    def world(start: int, first: str | None = None, person: Person = "as ever") -> list[Talk]:
        # Other customers than the log's.
        return [talk(seed, first, person) for seed in range(start * CONVERSATIONS, (start + 1) * CONVERSATIONS)]

    log = world(0)
    right = rate(log, lambda one: one.first == RIGHT), rate(world(1, RIGHT))
    wrong = rate(log, lambda one: one.first == WRONG), rate(world(2, WRONG))
    kept = rate(log, lambda one: one.first == WRONG and one.first_sent), rate(world(3, WRONG, "accepts first"))
    replaced = rate(log, lambda one: one.first == WRONG and not one.first_sent), rate(world(4, WRONG, "replaces first"))
    alone = rate(log, lambda one: one.all_sent), rate(world(5, None, "accepts"))
    rows = [
        (f"the agent first suggests “{RIGHT}”", *right),
        (f"the agent first suggests “{WRONG}”", *wrong),
        (f"the agent first suggests “{WRONG}” and the person sends it", *kept),
        (f"the agent first suggests “{WRONG}” and the person says something else", *replaced),
        ("every suggestion is sent as it is", *alone),
    ]
    lines = ["| outcome rate if | in the log | when it is done |", "| --- | --- | --- |"]
    return "\n".join([*lines, *(f"| {text} | {seen:.3f} | {done:.3f} |" for text, seen, done in rows)])


def main() -> None:
    """Prints the table, or writes it too."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the table into docs/suggestions.md")
    found = table()
    print(found)
    if parser.parse_args().write:
        fill(PAGE, {"identified": found})


if __name__ == "__main__":
    main()
