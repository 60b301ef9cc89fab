"""A window on long histories: the first messages and the newest, whole messages only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


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

    def dropped(self, counts: Sequence[int], roles: Sequence[str], fixed: int = 0) -> int:
        """How many messages after the first ones are left out.

        It depends on the history alone and not on who asks, and what is left out stays out as the history grows. The
        newest message always stays; one that does not fit by itself is read whole. Roles go on alternating across the
        gap where they did before: many chat templates insist.

        Args:
            counts: tokens of every message, the oldest first.
            roles: who said each.
            fixed: tokens of all else in the prompt.
        """
        dropped = 0
        first = sum(counts[: self.first]) + fixed
        for length in range(self.first + 1, len(counts) + 1):
            kept = first + sum(counts[self.first + dropped : length])
            if kept <= self.tokens:
                continue
            fits = None
            least = dropped + 1
            for dropped in range(least, length - self.first):
                kept -= counts[self.first + dropped - 1]
                if self.first and roles[self.first + dropped] == roles[self.first - 1]:
                    continue
                if kept <= self.tokens:
                    fits = dropped
                if kept <= self.tokens // 2:
                    break
            if fits is not None:
                dropped = fits
        return dropped


@dataclass(slots=True)
class Cuts:
    """How often histories were cut: of ``states`` that were looked at, ``cut`` did not fit."""

    states: int = 0
    cut: int = 0

    def count(self, dropped: int) -> None:
        """One more state."""
        self.states += 1
        self.cut += dropped > 0

    @property
    def share(self) -> float | None:
        """The share that was cut; None before any was looked at."""
        return self.cut / self.states if self.states else None
