"""Q of logged conversations, as many as there may be: scored window by window, and written as they are."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from lightning_iterppo.conversation import Conversation
from lightning_iterppo.critic import QCritic
from lightning_iterppo.files import write_lines_atomically
from lightning_iterppo.models.language_model import CRITIC
from lightning_iterppo.models.rendering import ChatRenderer
from lightning_iterppo.models.tree import TokenTree

#: Conversations that are sorted by length together: enough that little is padded, few enough to hold.
WINDOW = 512


def score_in_windows(
    critic: QCritic, trees: Iterable[TokenTree], *, rows: int, window: int = WINDOW
) -> Iterator[list[float]]:
    """What `QCritic.score` gives, tree by tree, of any number of trees, as `states_in_windows` does."""
    for scores in states_in_windows(critic, trees, rows=rows, window=window):
        yield [q for q, _ in scores]


def states_in_windows(
    critic: QCritic,
    trees: Iterable[TokenTree],
    *,
    rows: int,
    window: int = WINDOW,
    on_batch: Callable[[int, int], None] | None = None,
) -> Iterator[list[tuple[float, float | None]]]:
    """What `QCritic.score_states` gives, tree by tree, of any number of trees: a window of them is held at a time.

    Args:
        critic: Q.
        trees: conversations, with any responses added to their states.
        rows: trees a forward pass.
        window: how many trees are sorted by length together.
        on_batch: called with the number of trees and of tokens of each pass.
    """
    waiting = iter(trees)
    while held := list(islice(waiting, window)):
        lengths = [len(tree) for tree in held]
        order = sorted(range(len(held)), key=lengths.__getitem__)
        found: list[list[tuple[float, float | None]]] = [[] for _ in held]
        with critic.model.using(CRITIC), critic.model.whole():
            for start in range(0, len(order), rows):
                chosen = order[start : start + rows]
                values = critic.score_states([held[index] for index in chosen], rows=rows)
                for index, each in zip(chosen, values, strict=True):
                    found[index] = each
                    # What frozen layers made of a tree goes with it, unless somebody else holds the tree.
                    held[index] = TokenTree()
                if on_batch is not None:
                    on_batch(len(chosen), sum(lengths[index] for index in chosen))
        yield from found


@dataclass(slots=True)
class Scored:
    """What was written: how many conversations and agent messages, and the mean of their Q."""

    conversations: int = 0
    turns: int = 0
    total: float = 0.0

    @property
    def mean(self) -> float | None:
        """None when there was no message."""
        return self.total / self.turns if self.turns else None


def write_scores(
    critic: QCritic,
    renderer: ChatRenderer,
    conversations: Iterable[Conversation],
    path: Path,
    *,
    rows: int,
    on_batch: Callable[[int, int], None] | None = None,
) -> Scored:
    """Writes what every agent message that was sent is worth, a line each, in the order of the file.

    A line is ``{"id", "turn", "q", "v"}``: Q of the message, and V of the conversation before it, null where the critic
    has none (`QCritic.fit_states`). Q − V is what the message changed.
    ``turn`` is the message's index in ``Conversation.messages``: all messages count, a system message does not, and
    neighbours of one role are one. What was suggested and not sent is not scored. The file is whole or not there.

    Args:
        critic: Q.
        renderer: the model's chat template.
        conversations: any number; a window of them is held at a time.
        path: where the lines go.
        rows: conversations a forward pass.
        on_batch: called with the number of conversations and of tokens of each pass.
    """
    done = Scored()
    waiting: deque[tuple[str, list[int]]] = deque()  # of the window that is being scored
    passing = renderer.forgetful()

    def trees() -> Iterator[TokenTree]:
        for conversation in conversations:
            waiting.append((conversation.id, _places(conversation)))
            yield passing.render(conversation.as_sent()).tree

    def lines() -> Iterator[str]:
        scores = states_in_windows(critic, trees(), rows=rows, on_batch=on_batch)
        for values in scores:
            name, places = waiting.popleft()
            done.conversations += 1
            done.turns += len(values)
            done.total += sum(q for q, _ in values)
            for place, (q, v) in zip(places, values, strict=True):
                yield json.dumps({"id": name, "turn": place, "q": q, "v": v}, ensure_ascii=False)

    write_lines_atomically(path, lines())
    return done


def _places(conversation: Conversation) -> list[int]:
    """Where its agent messages stand in ``conversation.messages``."""
    return [place for place, message in enumerate(conversation.messages) if message.role == "agent"]
