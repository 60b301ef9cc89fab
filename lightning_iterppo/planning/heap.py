"""A heap as glibc keeps one: the smallest hole that is large enough is taken, and what it grew to it stays."""

from __future__ import annotations

from bisect import bisect_left, insort

#: glibc looks for so much more than an aligned block has, and gives back what it did not need: a hole that such a block
#: has left does not take another one of its size.
SLACK = 96


class Heap:
    """Places blocks, and says how far they reach.

    A freed block is a hole, one with the holes beside it. A block that needs more than any hole has goes to the end.
    """

    def __init__(self) -> None:
        #: How far blocks have ever reached, in bytes.
        self.reach = 0
        self._end = 0
        self._holes: list[tuple[int, int]] = []  # (size, start), the smallest first
        self._starts: dict[int, int] = {}  # of a hole: its size
        self._stops: dict[int, int] = {}  # of a hole: its size, by where it ends

    def take(self, size: int) -> int:
        """Where a block of so many bytes lies."""
        place = bisect_left(self._holes, (size + SLACK, -1))
        if place == len(self._holes):
            start = self._end
            self._end += size
            self.reach = max(self.reach, self._end)
            return start
        whole, start = self._holes.pop(place)
        self._forget(start, whole)
        if whole > size:
            self._remember(start + size, whole - size)
        return start

    def give(self, start: int, size: int) -> None:
        """Frees a block."""
        if (before := self._stops.get(start)) is not None:
            self._remove(start - before, before)
            start, size = start - before, size + before
        if (behind := self._starts.get(start + size)) is not None:
            self._remove(start + size, behind)
            size += behind
        if start + size == self._end:
            self._end = start
        else:
            self._remember(start, size)

    def _remember(self, start: int, size: int) -> None:
        insort(self._holes, (size, start))
        self._starts[start] = self._stops[start + size] = size

    def _remove(self, start: int, size: int) -> None:
        self._holes.pop(bisect_left(self._holes, (size, start)))
        self._forget(start, size)

    def _forget(self, start: int, size: int) -> None:
        del self._starts[start], self._stops[start + size]
