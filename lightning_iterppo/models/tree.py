"""Token trees: a conversation and every response branching off its states, as one row of tokens.

A state is a path from a root; a response is a segment that hangs on the end of one. Tokens attend to their own path
only, and positions count along the path, so that one forward pass of one row gives every response exactly the hidden
states it would have had in a row of its own, while the shared history is computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

ROOT = -1


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of tokens after segment ``parent`` (`ROOT` for the start); ``action`` marks a response."""

    token_ids: tuple[int, ...]
    parent: int
    action: bool = False


@dataclass(slots=True)
class TokenTree:
    """Segments in an order where a parent comes before its children."""

    segments: list[Segment] = field(default_factory=list)
    #: What frozen layers made of the tokens, (tokens, hidden), and which model: kept by `LanguageModel`, for as long as
    #: the tree lives. A tree must not change once it has been computed.
    features: tuple[object, Tensor] | None = field(default=None, compare=False, repr=False)

    def add(self, token_ids: Sequence[int], parent: int, *, action: bool = False) -> int:
        """Adds a segment and gives its index.

        Raises:
            ValueError: there are no tokens, the parent does not exist, or a response has no state before it.
        """
        if not token_ids:
            raise ValueError("a segment needs at least one token")
        if not ROOT <= parent < len(self.segments):
            raise ValueError(f"segment {parent} does not exist")
        if action and parent == ROOT:
            raise ValueError("a response needs a state to follow")
        self.segments.append(Segment(tuple(token_ids), parent, action))
        return len(self.segments) - 1

    @property
    def actions(self) -> list[int]:
        """Indices of the responses, in order."""
        return [index for index, segment in enumerate(self.segments) if segment.action]

    def path(self, index: int) -> list[int]:
        """The token ids from the root to the end of segment ``index``."""
        parts: list[tuple[int, ...]] = []
        while index != ROOT:
            parts.append(self.segments[index].token_ids)
            index = self.segments[index].parent
        return [token for part in reversed(parts) for token in part]

    def __len__(self) -> int:
        """How many tokens the row has."""
        return sum(len(segment.token_ids) for segment in self.segments)

    def copy(self) -> TokenTree:
        """A tree that can grow without changing this one."""
        return TokenTree(list(self.segments))

    def pruned(self) -> TokenTree:
        """The tree without what leads to no response: nothing asks for it."""
        needed: set[int] = set()
        for index in reversed(range(len(self.segments))):
            if self.segments[index].action or index in needed:
                needed |= {index, self.segments[index].parent}
        places = {ROOT: ROOT}
        found = TokenTree()
        for index, segment in enumerate(self.segments):
            if index in needed:
                places[index] = found.add(segment.token_ids, places[segment.parent], action=segment.action)
        return found

    @property
    def chain(self) -> bool:
        """Whether nothing branches: every segment follows the one before."""
        return all(segment.parent == index - 1 for index, segment in enumerate(self.segments))


@dataclass(slots=True)
class TreeBatch:
    """Rows of trees, padded on the right, and where their responses are.

    ``input_ids`` and ``position_ids`` are (rows, tokens), ``attention_mask`` is (rows, 1, tokens, tokens) and true
    where a token may look, or None when no row branches, so that plain causal attention does. ``trees`` are the rows.
    The responses of all rows are listed in order: ``action_rows`` (batch,) says which row, ``action_positions`` (batch,
    response) where its tokens stand, ``predict_positions`` (batch, response) where the hidden states stand that predict
    them, ``action_tokens`` (batch, response) what they are, and ``action_mask`` (batch, response) which entries are
    real. The last ``stand_ins`` rows are computed and count nothing: they stand in for rows of other processes.
    """

    input_ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor | None
    action_rows: Tensor
    action_positions: Tensor
    predict_positions: Tensor
    action_tokens: Tensor
    action_mask: Tensor
    trees: list[TokenTree]
    stand_ins: int = 0

    def to(self, device: torch.device | str, non_blocking: bool = False) -> TreeBatch:
        """The batch on another device."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=non_blocking) if isinstance(value, Tensor) else value
            for name, value in values.items()
        }
        return TreeBatch(**moved)

    def rows(self, start: int, stop: int) -> TreeBatch:
        """Some of the rows with their responses, as wide as all are."""
        own = self.responses(start, stop)
        return TreeBatch(
            input_ids=self.input_ids[start:stop],
            position_ids=self.position_ids[start:stop],
            attention_mask=None if self.attention_mask is None else self.attention_mask[start:stop],
            action_rows=self.action_rows[own] - start,
            action_positions=self.action_positions[own],
            predict_positions=self.predict_positions[own],
            action_tokens=self.action_tokens[own],
            action_mask=self.action_mask[own],
            trees=self.trees[start:stop],
            stand_ins=max(0, stop - max(start, self._counted_rows)),
        )

    def trunk_rows(self, chosen: Sequence[int]) -> TreeBatch:
        """Some of the rows, as wide as the longest of them, for a pass that asks for no response: it lists none."""
        trees = [self.trees[row] for row in chosen]
        width = max(len(tree) for tree in trees)
        where = torch.tensor(chosen, device=self.input_ids.device)
        masked = self.attention_mask is not None and not all(tree.chain for tree in trees)
        return TreeBatch(
            input_ids=self.input_ids[where, :width],
            position_ids=self.position_ids[where, :width],
            attention_mask=cast(Tensor, self.attention_mask)[where, :, :width, :width] if masked else None,
            action_rows=self.action_rows[:0],
            action_positions=self.action_positions[:0],
            predict_positions=self.predict_positions[:0],
            action_tokens=self.action_tokens[:0],
            action_mask=self.action_mask[:0],
            trees=trees,
        )

    def responses(self, start: int, stop: int) -> slice:
        """Which of the batch's responses belong to some of its rows."""
        counts = [len(tree.actions) for tree in self.trees]
        return slice(sum(counts[:start]), sum(counts[:stop]))

    @property
    def _counted_rows(self) -> int:
        return len(self.trees) - self.stand_ins

    @property
    def counted(self) -> Tensor:
        """Which responses count, (batch,): those of all rows but the stand-ins."""
        return self.action_rows < self._counted_rows

    @property
    def counted_mask(self) -> Tensor:
        """Which entries are tokens that count, (batch, response)."""
        return self.action_mask & self.counted[:, None]

    @property
    def counted_tokens(self) -> int:
        """How many tokens the rows that count have."""
        return sum(len(tree) for tree in self.trees[: self._counted_rows])

    @property
    def last_positions(self) -> Tensor:
        """Position of the last token of each response, (batch,)."""
        last = self.action_mask.sum(dim=1, keepdim=True) - 1
        return self.action_positions.gather(1, last).squeeze(1)


def own_rows(batch: TreeBatch) -> tuple[TreeBatch, Tensor, Tensor]:
    """Every response of a batch in a row of its own, with all that came before it, and every other end of a branch.

    Returns:
        The rows, and which row and which position of it holds each token of the batch, both (rows, tokens); padding is
        sent to the first token.
    """
    chains: list[TokenTree] = []
    rows = np.zeros(tuple(batch.input_ids.shape), dtype=np.int64)
    positions = np.zeros_like(rows)
    for row, tree in enumerate(batch.trees):
        starts = np.cumsum([0] + [len(segment.token_ids) for segment in tree.segments])
        followed = {segment.parent for segment in tree.segments}
        taken: set[int] = set()
        for end, segment in enumerate(tree.segments):
            if not segment.action and end in followed:
                continue
            line = [end]
            while tree.segments[line[0]].parent != ROOT:
                line.insert(0, tree.segments[line[0]].parent)
            chain = TokenTree()
            for number, index in enumerate(line):
                first = len(chain)
                chain.add(tree.segments[index].token_ids, number - 1, action=segment.action and index == end)
                if index not in taken:
                    taken.add(index)
                    rows[row, starts[index] : starts[index + 1]] = len(chains)
                    positions[row, starts[index] : starts[index + 1]] = np.arange(first, len(chain))
            chains.append(chain)
    device = batch.input_ids.device
    found = collate_trees(chains, pad_token_id=0).to(device)  # what pads is nobody's
    return found, torch.from_numpy(rows).to(device), torch.from_numpy(positions).to(device)


def collate_trees(trees: Sequence[TokenTree], pad_token_id: int, *, stand_ins: int = 0) -> TreeBatch:
    """One `TreeBatch` of several trees, of which the last ``stand_ins`` count nothing.

    Raises:
        ValueError: there is no tree.
    """
    if not trees:
        raise ValueError("a batch needs at least one tree")
    width = max(len(tree) for tree in trees)
    rows = len(trees)
    input_ids = np.full((rows, width), pad_token_id, dtype=np.int64)
    position_ids = np.tile(np.arange(width, dtype=np.int64), (rows, 1))  # padding goes on counting: it is nobody's
    branching = not all(tree.chain for tree in trees)
    mask = np.zeros((rows, width, width) if branching else (0, 0, 0), dtype=bool)
    mask[:] = np.eye(width, dtype=bool) if branching else 0  # padding looks at itself: never a softmax of nothing
    action_rows: list[int] = []
    spans: list[tuple[int, int, int]] = []  # (start, stop, predictor of the first token)
    for row, tree in enumerate(trees):
        count = len(tree.segments)
        lineage = np.zeros((count, count), dtype=bool)
        owner = np.zeros(len(tree), dtype=np.int64)
        depth_end = [0] * count
        stops = [0] * count
        start = 0
        for index, segment in enumerate(tree.segments):
            stop = start + len(segment.token_ids)
            first = 0
            if segment.parent != ROOT:
                lineage[index] = lineage[segment.parent]
                first = depth_end[segment.parent]
            lineage[index, index] = True
            input_ids[row, start:stop] = segment.token_ids
            position_ids[row, start:stop] = np.arange(first, first + stop - start)
            owner[start:stop] = index
            depth_end[index] = first + stop - start
            stops[index] = stop
            if segment.action:
                action_rows.append(row)
                spans.append((start, stop, stops[segment.parent] - 1))
            start = stop
        if not branching:
            continue
        depth = position_ids[row, :start]
        mask[row, :start, :start] = lineage[owner[:, None], owner[None, :]] & (depth[:, None] >= depth[None, :])
    longest = max((stop - start for start, stop, _ in spans), default=1)
    batch = len(spans)
    positions = np.zeros((batch, longest), dtype=np.int64)
    predictors = np.zeros((batch, longest), dtype=np.int64)
    tokens = np.full((batch, longest), pad_token_id, dtype=np.int64)
    real = np.zeros((batch, longest), dtype=bool)
    for index, (start, stop, before) in enumerate(spans):
        length = stop - start
        positions[index, :length] = np.arange(start, stop)
        predictors[index, 0] = before
        predictors[index, 1:length] = np.arange(start, stop - 1)
        tokens[index, :length] = input_ids[action_rows[index], start:stop]
        real[index, :length] = True
    return TreeBatch(
        input_ids=torch.from_numpy(input_ids),
        position_ids=torch.from_numpy(position_ids),
        attention_mask=torch.from_numpy(mask[:, None]) if branching else None,
        action_rows=torch.tensor(action_rows, dtype=torch.long),
        action_positions=torch.from_numpy(positions),
        predict_positions=torch.from_numpy(predictors),
        action_tokens=torch.from_numpy(tokens),
        action_mask=torch.from_numpy(real),
        trees=list(trees),
        stand_ins=stand_ins,
    )
