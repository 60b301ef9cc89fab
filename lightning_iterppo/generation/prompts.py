"""Prompts that wait for a row, and what is known of a prompt already."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_iterppo.generation.cache import SlotCache


@dataclass(frozen=True, slots=True)
class Admitted:
    """Prompts that were read.

    Args:
        indexes: which prompts.
        cache: holds their keys and values.
        rows: for each prompt a row of the cache that begins with it.
        lengths: tokens of each prompt.
        hidden: the last hidden state of each, (prompts, hidden).
    """

    indexes: list[int]
    cache: SlotCache
    rows: list[int]
    lengths: list[int]
    hidden: Tensor


class PromptQueue:
    """Reads prompts some at a time, beginnings that they share once, and gives them out.

    The longest come first, so that what is read together, and what is decoded together, is about equally long.

    Args:
        prompts: the prompts.
        rows: about how many are read at a time.
        read: reads texts, each into a row of its own, and gives the cache and their hidden states, (rows, tokens,
            hidden).
    """

    def __init__(
        self,
        prompts: Sequence[tuple[int, ...]],
        rows: int,
        read: Callable[[Sequence[tuple[int, ...]]], tuple[SlotCache, Tensor]],
    ) -> None:
        self._prompts = prompts
        self._rows = rows
        self._read = read
        self._longest, self._home = longest_prompts(prompts)
        by_home: dict[int, list[int]] = {}
        for index in sorted(range(len(prompts)), key=lambda index: len(prompts[index])):
            by_home.setdefault(self._home[index], []).append(index)
        homes = sorted(by_home, key=lambda home: (-len(self._longest[home]), home))
        self._waiting = [by_home[home] for home in homes][::-1]  # the next is the last
        self._ready: list[int] = []
        self._cache: SlotCache | None = None
        self._hidden = torch.empty(0)
        self._place: dict[int, int] = {}

    def take(self, count: int) -> Admitted | None:
        """At most ``count`` prompts; None when there are no more."""
        if not self._ready:
            if not self._waiting:
                return None
            self._read_more()
        assert self._cache is not None
        chosen, self._ready = self._ready[:count], self._ready[count:]
        rows = [self._place[self._home[index]] for index in chosen]
        lengths = [len(self._prompts[index]) for index in chosen]
        hidden = self._hidden[torch.tensor(rows), torch.tensor(lengths) - 1]
        admitted = Admitted(chosen, self._cache, rows, lengths, hidden)
        if not self._ready:
            self._cache, self._hidden = None, torch.empty(0)
        return admitted

    def _read_more(self) -> None:
        homes = []
        while self._waiting and len(self._ready) < self._rows:
            self._ready += self._waiting[-1]
            homes.append(self._home[self._waiting.pop()[0]])
        self._place = {home: row for row, home in enumerate(homes)}
        self._cache, self._hidden = self._read([self._longest[home] for home in homes])


def longest_prompts(prompts: Sequence[tuple[int, ...]]) -> tuple[list[tuple[int, ...]], list[int]]:
    """The prompts that no other prompt goes on from, and for each prompt which of those begins with it."""
    order = sorted(range(len(prompts)), key=lambda index: prompts[index])
    longest: list[tuple[int, ...]] = []
    home = [0] * len(prompts)
    # In sorted order everything that begins with a prompt comes right after it: walk backwards.
    for index in reversed(order):
        if not longest or longest[-1][: len(prompts[index])] != prompts[index]:
            longest.append(prompts[index])
        home[index] = len(longest) - 1
    return longest, home


def continued_rows(prompts: Sequence[tuple[int, ...]], texts: Sequence[tuple[int, ...]]) -> list[int | None]:
    """Which kept row each prompt goes on from, None where there is none.

    Conversations that are equal so far go on from the same row, which is as good as their own.
    """
    known = {text: row for row, text in enumerate(texts)}
    lengths = sorted({len(text) for text in texts}, reverse=True)
    return [
        next((known[prompt[:n]] for n in lengths if n < len(prompt) and prompt[:n] in known), None)
        for prompt in prompts
    ]
