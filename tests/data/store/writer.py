"""A process that writes into a store beside another one; `test_writers` starts it as a script."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from typing import Any

from lightning_iterppo.conversation import Conversation, Suggestion, Turn
from lightning_iterppo.data.store import ConversationStore
from lightning_iterppo.errors import StoreError


def talk(number: int) -> Conversation:
    said = f"Number {number}"
    turns = (Turn("hi", said, Suggestion(said, (number,), (-0.5,), "v"), "accepted"), Turn("and?", "so"))
    return Conversation(f"c-{number}", turns, policy_version="v")


def write(url: str, first: int) -> tuple[int, int]:
    """Adds conversations in pieces, half of which the other writer adds too, outcomes of all, corrections of one."""
    with ConversationStore(url) as store:
        added, recorded = store.add([talk(1000)]).added, 0
        for start in range(first, first + 80, 8):
            # One of the two goes through a piece backwards: locks of single rows would wait for each other.
            piece = [talk(number) for number in range(start, start + 8)]
            added += store.add(piece[::-1] if first else piece).added
            recorded += store.record_outcomes((each.id, 1.0) for each in piece).recorded
            assert store.record_outcome("c-1000", float(1000 * first + start), correct=True)
    return added, recorded


def contradict(url: str, value: int) -> int | None:
    """Says that a conversation ended so; gives what it said, or None where it was refused."""
    with ConversationStore(url) as store:
        try:
            store.record_outcome("c-0", float(value))
        except StoreError:
            return None
    return value


def hang(url: str, count: int) -> None:
    """Adds conversations, and stops in the middle of it for ever."""

    def endless() -> Iterator[Conversation]:
        yield from map(talk, range(count))
        print("hanging", flush=True)
        while True:
            time.sleep(1)

    with ConversationStore(url) as store:
        store.add(endless())


if __name__ == "__main__":
    work: Any = {"write": write, "contradict": contradict, "hang": hang}[sys.argv[1]]
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(work(sys.argv[2], int(sys.argv[3]))))
