"""Logged conversations as batches: every turn of a conversation is a sample, computed in one pass of its row."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from lightning_iterppo.conversation import Conversation
from lightning_iterppo.errors import LogDataError
from lightning_iterppo.models.rendering import ChatRenderer
from lightning_iterppo.models.tree import TokenTree, TreeBatch, collate_trees


@dataclass(frozen=True, slots=True)
class LoggedTree:
    """A conversation as a tree, the return G_t of each of its actions, and how much each counts (empty: 1)."""

    tree: TokenTree
    returns: list[float]
    weights: list[float] = field(default_factory=list)


@dataclass(slots=True)
class TurnBatch:
    """Rows of conversations, and the return and the weight of each action, both (batch,)."""

    tree: TreeBatch
    returns: Tensor
    weights: Tensor

    def rows(self, start: int, stop: int) -> TurnBatch:
        """Some of the rows with their actions."""
        own = self.tree.responses(start, stop)
        return TurnBatch(self.tree.rows(start, stop), self.returns[own], self.weights[own])


def logged_trees(
    conversations: Sequence[Conversation],
    renderer: ChatRenderer,
    gamma: float,
    *,
    unknown_outcomes: bool = False,
    weights: Mapping[str, Sequence[float]] | None = None,
) -> list[LoggedTree]:
    """Trees with Monte Carlo returns; conversations whose outcome is unknown are left out, never taken for a 0.

    With ``unknown_outcomes`` they are there, with NaN for returns: for what learns from the messages alone. ``weights``
    are of conversations' turns, by the conversation's id.
    """
    return [
        LoggedTree(
            renderer.render(conversation).tree,
            [math.nan] * len(conversation.turns) if conversation.outcome is None else conversation.returns(gamma),
            list((weights or {}).get(conversation.id, [])),
        )
        for conversation in conversations
        if unknown_outcomes or conversation.outcome is not None
    ]


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


def split_conversations(
    conversations: Sequence[Conversation], fraction: float, seed: int
) -> tuple[list[Conversation], list[Conversation]]:
    """Training and validation conversations: whole ones, so that no turn of a validation conversation was trained on.

    Raises:
        ValueError: the fraction leaves one side empty.
    """
    held = round(len(conversations) * fraction)
    if not 0 < held < len(conversations):
        raise ValueError(
            f"cannot hold out {fraction:g} of {len(conversations)} conversations and keep some on both sides"
        )
    order = torch.randperm(len(conversations), generator=torch.Generator().manual_seed(seed)).tolist()
    return [conversations[i] for i in sorted(order[held:])], [conversations[i] for i in sorted(order[:held])]


def shard(items: Sequence[LoggedTree], rank: int, world_size: int, *, equal: bool) -> list[LoggedTree]:
    """The items of one process.

    With ``equal`` every process gets the same number, the first ones repeated if need be: processes that take different
    numbers of steps would wait for each other for ever.
    """
    if world_size == 1:
        return list(items)
    chosen = list(range(rank, len(items), world_size))
    if equal and items and len(chosen) < -(-len(items) // world_size):
        chosen.append(rank % len(items))
    return [items[i] for i in chosen]


class LengthBatches(Sampler[list[int]]):
    """Batches of items of similar length, in random order, so that little is padded.

    Args:
        lengths: tokens of each item.
        batch_size: items a batch.
        seed: the order's randomness; each pass has its own.
        passes: how many times all items are gone through.
        shuffle: false keeps the order by length.
    """

    def __init__(
        self, lengths: Sequence[int], batch_size: int, *, seed: int = 0, passes: int = 1, shuffle: bool = True
    ) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.passes = passes
        self.shuffle = shuffle
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return self.passes * -(-len(self.lengths) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for _ in range(self.passes):
            order = list(range(len(self.lengths)))
            if self.shuffle:
                order = torch.randperm(len(order), generator=self.generator).tolist()
            # A wide window of random items, sorted inside: nearly no padding, and still random batches.
            order.sort(key=lambda index: self.lengths[index] // 16)
            batches = [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
            if self.shuffle:
                mixed = torch.randperm(len(batches), generator=self.generator).tolist()
                batches = [batches[i] for i in mixed]
            yield from batches


class _Listed(Dataset[LoggedTree]):
    def __init__(self, items: Sequence[LoggedTree]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> LoggedTree:
        return self.items[index]


class TurnDataModule(pl.LightningDataModule):
    """Conversations for `QCritic` and `WarmStart`.

    Args:
        train: conversations to learn from.
        validation: whole conversations held out; empty skips validation.
        renderer: the model's chat template.
        gamma: discount from turn to turn.
        batch_size: conversations a batch; a batch holds all their turns.
        seed: the order of the batches.
        unknown_outcomes: keep conversations whose outcome is unknown, for `WarmStart`; `QCritic` cannot use them.
        bounds: the returns that the critic can fit (``critic.objective.bounds``); None for any.
        weights: how much the turns of training conversations count, by the conversation's id; 1 where there are none.
        relabel: other targets for the training conversations, asked for whenever a training dataloader is: with
            ``reload_dataloaders_every_n_epochs=1`` in every epoch.

    Raises:
        ValueError: there is no training conversation, or none with a known outcome.
        LogDataError: a return is out of bounds; see `check_returns`.
    """

    def __init__(
        self,
        train: Sequence[Conversation],
        validation: Sequence[Conversation] = (),
        *,
        renderer: ChatRenderer,
        gamma: float = 1.0,
        batch_size: int = 8,
        seed: int = 0,
        unknown_outcomes: bool = False,
        bounds: tuple[float, float] | None = (0.0, 1.0),
        weights: Mapping[str, Sequence[float]] | None = None,
        relabel: Callable[[Sequence[LoggedTree]], Sequence[LoggedTree]] | None = None,
    ) -> None:
        super().__init__()
        self.renderer = renderer
        self.batch_size = batch_size
        self.seed = seed
        self.relabel = relabel
        self._loads = 0
        if not unknown_outcomes:
            check_returns([*train, *validation], gamma, bounds)
        self.train_trees = logged_trees(train, renderer, gamma, unknown_outcomes=unknown_outcomes, weights=weights)
        self.validation_trees = logged_trees(validation, renderer, gamma, unknown_outcomes=unknown_outcomes)
        if not self.train_trees:
            raise ValueError("no training conversation has a known outcome, so there is nothing to learn from")

    def _loader(self, items: Sequence[LoggedTree], *, training: bool) -> DataLoader[LoggedTree]:
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        own = shard(items, rank, world, equal=training)
        seed = self.seed + self._loads
        batches = LengthBatches([len(i.tree) for i in own], self.batch_size, seed=seed, shuffle=training)
        return DataLoader(_Listed(own), batch_sampler=batches, collate_fn=self.collate)

    def collate(self, items: list[LoggedTree]) -> TurnBatch:
        """A batch of conversations."""
        returns = [value for item in items for value in item.returns]
        weights = [value for item in items for value in item.weights or [1.0] * len(item.returns)]
        return TurnBatch(
            collate_trees([item.tree for item in items], self.renderer.pad_token_id),
            torch.tensor(returns, dtype=torch.float32),
            torch.tensor(weights, dtype=torch.float32),
        )

    def train_dataloader(self) -> DataLoader[LoggedTree]:
        """Batches of training conversations, in random order."""
        items = self.train_trees if self.relabel is None else self.relabel(self.train_trees)
        loader = self._loader(items, training=True)
        self._loads += 1
        return loader

    def val_dataloader(self) -> DataLoader[LoggedTree] | list[DataLoader[LoggedTree]]:
        """Batches of held-out conversations."""
        return self._loader(self.validation_trees, training=False) if self.validation_trees else []
