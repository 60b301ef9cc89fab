"""A window on long histories: the first messages and the newest, whole messages only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

#: The fewest tokens that a recipe's window may have.
NARROWEST = 16


@dataclass(frozen=True, slots=True)
class Window:
    """How much of a history the model reads before it speaks.

    A history that does not fit loses messages after the first ones, the oldest first, and down to half of the tokens at
    once: the states of the next turns then begin alike again, so that what was read can be kept from turn to turn. A
    cut at every turn would move everything at every turn.

    Args:
        tokens: the most that a prompt may have, the system message and the template's own tokens included.
        first: how many of the first messages always stay: they often say what the customer came for.

    Raises:
        ValueError: no tokens, or fewer than no first messages.
    """

    tokens: int
    first: int = 2

    def __post_init__(self) -> None:
        if self.tokens < 1 or self.first < 0:
            raise ValueError(
                f"a window needs tokens of at least 1 and first of at least 0, found {self.tokens}, {self.first}"
            )

    def gap(self, counts: Sequence[int], roles: Sequence[str], fixed: int = 0) -> tuple[int, int]:
        """Which messages are left out, as ``(start, stop)``: ``messages[:start]`` and ``messages[stop:]`` are read.

        It depends on the history alone and not on who asks, and what is left out stays out as the history grows. The
        newest message always stays; one that does not fit by itself is read whole. Roles go on alternating across the
        gap where they alternated before: many chat templates insist. Where that takes a message more before the newest,
        and the two do not fit, the last of the first messages is left out instead.

        Args:
            counts: tokens of every message, the oldest first.
            roles: who said each.
            fixed: tokens of all else in the prompt.
        """
        ends = [0, *accumulate(counts)]

        def size(gap: tuple[int, int], length: int) -> int:
            return fixed + ends[gap[0]] + ends[length] - ends[gap[1]]

        start = stop = self.first
        for length in range(self.first + 1, len(counts) + 1):
            if length < len(counts) and roles[length] != "agent":
                continue  # nobody asks: the agent does not speak here
            if size((start, stop), length) <= self.tokens:
                continue
            free = any(one == other for one, other in pairwise(roles[:length]))
            found = []
            for first in (start, self.first - 1):
                gaps = [
                    (first, last)
                    for last in range(stop, length)
                    if free or first in (0, last) or roles[first - 1] != roles[last]
                ]
                found.append(next((gap for gap in gaps if size(gap, length) <= self.tokens // 2), gaps[-1]))
                if first in (0, self.first - 1) or gaps[-1][1] == length - 1:
                    break  # the newest can follow by itself, or one of the first gave way already
            start, stop = next((gap for gap in found if size(gap, length) <= self.tokens), found[0])
        return start, stop

    def fits(self, counts: Sequence[int], fixed: int = 0) -> bool:
        """Whether all of a history can be read."""
        return fixed + sum(counts) <= self.tokens


@dataclass(slots=True)
class Cuts:
    """How often histories were cut: of ``states`` that were looked at, ``cut`` did not fit."""

    states: int = 0
    cut: int = 0

    def count(self, fits: bool) -> None:
        """One more state, whose history fits or does not."""
        self.states += 1
        self.cut += not fits

    @property
    def share(self) -> float | None:
        """The share that was cut; None before any was looked at."""
        return self.cut / self.states if self.states else None
