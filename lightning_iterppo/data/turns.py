"""Logged conversations as batches: every turn of a conversation is a sample, computed in one pass of its row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from lightning_iterppo.conversation import Conversation
from lightning_iterppo.data.parts import Parts, load_parts
from lightning_iterppo.data.trees import KEPT_CONVERSATIONS, LoggedTree, LoggedTrees, token_lengths
from lightning_iterppo.data.views import select
from lightning_iterppo.models.rendering import ChatRenderer
from lightning_iterppo.models.tree import TreeBatch, collate_trees


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


def split_conversations(
    conversations: Sequence[Conversation], fraction: float, seed: int
) -> tuple[Sequence[Conversation], Sequence[Conversation]]:
    """Training and validation conversations: whole ones, so that no turn of a validation conversation was trained on.

    Both are lists of a list's conversations, and read nothing of those that stay where they are.

    Raises:
        ValueError: the fraction leaves one side empty.
    """
    held = round(len(conversations) * fraction)
    if not 0 < held < len(conversations):
        raise ValueError(
            f"cannot hold out {fraction:g} of {len(conversations)} conversations and keep some on both sides"
        )
    order = torch.randperm(len(conversations), generator=torch.Generator().manual_seed(seed)).numpy()
    return select(conversations, np.sort(order[held:])), select(conversations, np.sort(order[:held]))


class RandomBatches(Sampler[list[int]]):
    """Batches that each are a random part of the items.

    Items of like length would pad less, but a conversation's length says much of how it went: steps that each see one
    kind of conversation pull the policy to and fro, and it learns less (`docs/learning.md` has the figures).

    Args:
        count: how many items there are.
        batch_size: items a batch.
        seed: the order's randomness; each pass has its own.
        passes: how many times all items are gone through.
    """

    def __init__(self, count: int, batch_size: int, *, seed: int = 0, passes: int = 1) -> None:
        self.count = count
        self.batch_size = batch_size
        self.passes = passes
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return self.passes * -(-self.count // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for _ in range(self.passes):
            order = torch.randperm(self.count, generator=self.generator).tolist()
            for start in range(0, self.count, self.batch_size):
                yield order[start : start + self.batch_size]


class TurnDataModule(pl.LightningDataModule):
    """Conversations for `QCritic` and `WarmStart`.

    Of conversations that stay where they are (`ConversationFile`, `StoredConversations`) it holds some bytes each, and
    the trees that `LoggedTrees` keeps.

    Args:
        train: conversations to learn from.
        validation: whole conversations held out; empty skips validation.
        renderer: the model's chat template.
        gamma: discount from turn to turn.
        batch_size: conversations a batch, over all processes; a batch holds all their turns.
        seed: the order of the batches.
        unknown_outcomes: keep conversations whose outcome is unknown, for `WarmStart`; `QCritic` cannot use them.
        bounds: the returns that the critic can fit (``critic.objective.bounds``); None for any.
        weights: how much the turns of training conversations count, by the conversation's id; 1 where there are none.
        relabel: other targets for the training conversations, asked for whenever a training dataloader is: with
            ``reload_dataloaders_every_n_epochs=1`` in every epoch.
        keep: how many trees are kept at most; see `LoggedTrees`. Of the training conversations, and of the others.
        on_read: called after every conversation of the pass that finds their lengths.

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
        keep: int = KEPT_CONVERSATIONS,
        on_read: Callable[[], None] | None = None,
    ) -> None:
        super().__init__()
        self.renderer = renderer
        self.batch_size = batch_size
        self.seed = seed
        self.relabel = relabel
        self._loads = 0

        def trees(
            conversations: Sequence[Conversation], weights: Mapping[str, Sequence[float]] | None = None
        ) -> LoggedTrees:
            return LoggedTrees(
                conversations,
                renderer,
                gamma,
                unknown_outcomes=unknown_outcomes,
                bounds=None if unknown_outcomes else bounds,
                weights=weights,
                keep=keep,
                on_read=on_read,
            )

        self.train_trees = trees(train, weights)
        self.validation_trees = trees(validation)
        if not self.train_trees:
            raise ValueError("no training conversation has a known outcome, so there is nothing to learn from")

    def _by_length(self, items: Sequence[LoggedTree]) -> DataLoader[TurnBatch]:
        return load_parts(items, self._batches_by_length(items), self.collate)

    def _batches_by_length(self, items: Sequence[LoggedTree]) -> list[list[int]]:
        order: list[int] = np.argsort(token_lengths(items), kind="stable").tolist()
        return [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]

    def collate(self, items: Sequence[LoggedTree], stand_ins: int = 0) -> TurnBatch:
        """A batch of conversations, of which the last ``stand_ins`` count nothing."""
        returns = [value for item in items for value in item.returns]
        weights = [value for item in items for value in item.weights or [1.0] * len(item.returns)]
        return TurnBatch(
            collate_trees([item.tree for item in items], self.renderer.pad_token_id, stand_ins=stand_ins),
            torch.tensor(returns, dtype=torch.float32),
            torch.tensor(weights, dtype=torch.float32),
        )

    def train_dataloader(self) -> DataLoader[TurnBatch]:
        """This process's parts of batches of training conversations, in random order."""
        items = self.train_trees if self.relabel is None else self.relabel(self.train_trees)
        batches = RandomBatches(len(items), self.batch_size, seed=self.seed + self._loads)
        self._loads += 1
        return load_parts(items, batches, self.collate)

    def reading_dataloader(self) -> DataLoader[TurnBatch]:
        """Training conversations in the order of their lengths, which pads least: for a pass that trains nothing."""
        return self._by_length(self.train_trees)

    def reading_order(self) -> list[int]:
        """Which training conversations `reading_dataloader` gives this process, in its order, without stand-ins."""
        parts = Parts(self._batches_by_length(self.train_trees))
        return [index for part in parts for index in part.items[: len(part.items) - part.stand_ins]]

    def val_dataloader(self) -> DataLoader[TurnBatch] | list[DataLoader[TurnBatch]]:
        """This process's parts of batches of held-out conversations."""
        return self._by_length(self.validation_trees) if self.validation_trees else []
