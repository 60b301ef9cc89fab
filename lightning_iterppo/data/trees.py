"""Logged conversations as token trees with their returns, made when they are asked for."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lightning_iterppo.conversation import Conversation
from lightning_iterppo.data.conversation_file import outcomes_known
from lightning_iterppo.data.views import Lazy, View, select
from lightning_iterppo.errors import LogDataError
from lightning_iterppo.models.rendering import ChatRenderer
from lightning_iterppo.models.tree import TokenTree

#: Trees that are kept, with what frozen layers made of them: all of a loop's, and a bounded part of a large log's.
KEPT_CONVERSATIONS = 2048
KEPT_TOKENS = 2**20


@dataclass(frozen=True, slots=True)
class LoggedTree:
    """A conversation as a tree, the return G_t of each of its actions, and how much each counts (empty: 1)."""

    tree: TokenTree
    returns: list[float]
    weights: list[float] = field(default_factory=list)


class LoggedTrees(Lazy[LoggedTree]):
    """The trees of conversations with Monte Carlo returns.

    The first ones are kept, so that a few hundred conversations are rendered once. The others are rendered whenever
    they are asked for, and live as long as whoever asked holds them. Making it renders all once, for their lengths.

    Args:
        conversations: those whose outcome is unknown are left out, never taken for a 0.
        renderer: the model's chat template.
        gamma: discount from turn to turn.
        unknown_outcomes: keep those too, with NaN for returns: for what learns from the messages alone.
        bounds: what known returns must lie in; None for anything.
        weights: of conversations' turns, by the conversation's id.
        keep: how many trees are kept at most; fewer when they have more than `KEPT_TOKENS` tokens.
        on_read: called after every conversation of the first pass.

    Raises:
        LogDataError: a return is out of bounds; see `check_returns`.
    """

    def __init__(
        self,
        conversations: Sequence[Conversation],
        renderer: ChatRenderer,
        gamma: float,
        *,
        unknown_outcomes: bool = False,
        bounds: tuple[float, float] | None = None,
        weights: Mapping[str, Sequence[float]] | None = None,
        keep: int = KEPT_CONVERSATIONS,
        on_read: Callable[[], None] | None = None,
    ) -> None:
        if not unknown_outcomes:
            conversations = select(conversations, np.flatnonzero(outcomes_known(conversations)))
        self._conversations = conversations
        self._passing = renderer.forgetful()
        self._gamma = gamma
        self._weights = weights or {}
        #: The first trees, which are the same objects whenever they are asked for.
        self.kept: list[LoggedTree] = []
        #: Tokens of each tree.
        self.lengths: NDArray[np.int32] = np.zeros(len(conversations), dtype=np.int32)
        keeping, room = keep > 0, KEPT_TOKENS
        for index, conversation in enumerate(conversations):
            check_returns([conversation], gamma, bounds)
            item = self._rendered(conversation, renderer if keeping else self._passing)
            self.lengths[index] = len(item.tree)
            if keeping:
                self.kept.append(item)
                room -= len(item.tree)
                keeping = len(self.kept) < keep and room > 0
            if on_read is not None:
                on_read()

    def _rendered(self, conversation: Conversation, renderer: ChatRenderer) -> LoggedTree:
        unknown = conversation.outcome is None
        return LoggedTree(
            renderer.render(conversation).tree,
            [math.nan] * len(conversation.turns) if unknown else conversation.returns(self._gamma),
            list(self._weights.get(conversation.id, [])),
        )

    def __len__(self) -> int:
        return len(self.lengths)

    def _item(self, index: int) -> LoggedTree:
        if index < len(self.kept):
            return self.kept[index]
        return self._rendered(self._conversations[index], self._passing)


class Retargeted(Lazy[LoggedTree]):
    """The same trees with other returns, which take four bytes a turn.

    Args:
        items: the trees.
        targets: of each tree, in order, one number an action.
    """

    def __init__(self, items: Sequence[LoggedTree], targets: Iterable[Sequence[float]]) -> None:
        self.items = items
        self._targets, self._ends = array("f"), array("q", [0])
        for values in targets:
            self._targets.extend(values)
            self._ends.append(len(self._targets))

    def __len__(self) -> int:
        return len(self.items)

    def _item(self, index: int) -> LoggedTree:
        item = self.items[index]
        return LoggedTree(item.tree, list(self._targets[self._ends[index] : self._ends[index + 1]]), item.weights)


def token_lengths(items: Sequence[LoggedTree]) -> NDArray[np.int32]:
    """Tokens of each tree, without rendering those that are not kept."""
    if isinstance(items, View):
        return token_lengths(items.items)[items.rows]
    if isinstance(items, Retargeted):
        return token_lengths(items.items)
    if isinstance(items, LoggedTrees):
        return items.lengths
    return np.array([len(item.tree) for item in items], dtype=np.int32)


def check_returns(conversations: Iterable[Conversation], gamma: float, bounds: tuple[float, float] | None) -> None:
    """A critic that fits returns in a range needs every known one to lie in it; by default Q is a probability.

    Raises:
        LogDataError: one does not, with its conversation and turn.
    """
    if bounds is None:
        return
    low, high = bounds
    for conversation in conversations:
        if conversation.outcome is None:
            continue
        for turn, value in enumerate(conversation.returns(gamma)):
            if not low - 1e-9 <= value <= high + 1e-9:
                raise LogDataError(
                    f"conversation {conversation.id!r}, turn {turn + 1}: from here on it earned {value:g}, but the "
                    f"critic needs returns from {low:g} to {high:g}: scale the outcomes, or fit amounts with "
                    "critic.loss=mse or hl-gauss and critic.low and critic.high"
                )
