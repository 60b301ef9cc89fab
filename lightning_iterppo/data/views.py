"""Parts of a sequence whose items are made when they are asked for."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

Item = TypeVar("Item")
Rows = NDArray[np.int64]


class Lazy(Sequence[Item]):
    """A sequence whose items are made when they are asked for, by `_item`. A slice is a `View` of it."""

    @abstractmethod
    def _item(self, index: int) -> Item:
        """The item of a number from 0 to below the length."""

    @overload
    def __getitem__(self, index: int) -> Item: ...

    @overload
    def __getitem__(self, index: slice) -> View[Item]: ...

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return View(self, np.arange(len(self))[index])
        return self._item(range(len(self))[index])


class View(Lazy[Item]):
    """Some items of a sequence, by their numbers. Nothing is copied.

    Args:
        items: the sequence.
        rows: which of its items, in this order.
    """

    def __init__(self, items: Sequence[Item], rows: Rows) -> None:
        # A view of a view is one of what is below both.
        self.items: Sequence[Item] = items.items if isinstance(items, View) else items
        self.rows: Rows = items.rows[rows] if isinstance(items, View) else rows

    def __len__(self) -> int:
        return len(self.rows)

    def _item(self, index: int) -> Item:
        return self.items[int(self.rows[index])]


def select(items: Sequence[Item], rows: Rows) -> Sequence[Item]:
    """The items of these numbers: a list of a list's, and a `View` of everything else's."""
    if isinstance(items, list | tuple):
        return [items[row] for row in rows.tolist()]
    return View(items, rows)
