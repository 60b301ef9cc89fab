"""What each process has of a batch: a step is of the whole batch, whoever computes which rows of it.

Every process makes the same batches and takes its part of each. Parts are equally large, so that no process waits for
another one's rows: where a batch cannot be divided, a row of another process's stands in, is computed, and counts
nothing. Under a strategy that shards the weights the passes have to be as many on every process, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

from torch.utils.data import DataLoader, Dataset, Sampler

from lightning_iterppo.trainer import rank, world_size

Item = TypeVar("Item")
Batch = TypeVar("Batch", covariant=True)


class WholeBatches(Protocol):
    """The numbers of each batch's items, the same ones on every process."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[list[int]]: ...


class Part(NamedTuple):
    """A process's part of a batch.

    Args:
        items: which items.
        stand_ins: how many of the last of them count nothing.
    """

    items: list[int]
    stand_ins: int


def part_of(batch: Sequence[int], rank: int, world: int) -> Part:
    """The items of one process, as many as every process has.

    Args:
        batch: the whole batch, at least one item.
        rank: which process.
        world: how many there are.
    """
    own = list(batch[rank::world])
    stand_ins = -(-len(batch) // world) - len(own)
    return Part(own + [batch[0]] * stand_ins, stand_ins)


class Parts(Sampler[Part]):
    """This process's parts of batches.

    Args:
        batches: the whole ones.
    """

    def __init__(self, batches: WholeBatches) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Part]:
        for batch in self.batches:
            yield part_of(batch, rank(), world_size())


class _Collated(Dataset[Batch], Generic[Item, Batch]):
    def __init__(self, items: Sequence[Item], collate: Callable[[Sequence[Item], int], Batch]) -> None:
        self.items = items
        self.collate = collate

    def __getitem__(self, part: Part) -> Batch:
        return self.collate([self.items[index] for index in part.items], part.stand_ins)


def load_parts(
    items: Sequence[Item], batches: WholeBatches, collate: Callable[[Sequence[Item], int], Batch]
) -> DataLoader[Batch]:
    """A dataloader of this process's parts.

    Args:
        items: all items, the same ones on every process.
        batches: the whole batches.
        collate: makes a batch of items, of which the last so many stand in.
    """
    return DataLoader(
        _Collated(items, collate), sampler=Parts(batches), batch_size=None, collate_fn=lambda batch: batch
    )
