"""Micro-batches: a training step over groups of a batch's rows, so that only one group's activations are in memory.

The groups are parts of one step, and not steps of their own: their losses are added up and go backward once. What is
learnt does not depend on the memory at hand, and Lightning's precision, clipping, accumulation and strategies see an
ordinary step. Every group but the last is computed again in the backward pass, which is the price; the last is not,
since the backward pass begins with it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_iterppo.memory import free_memory, memory_taken
from lightning_iterppo.models.tree import TreeBatch

MicroBatchSize = int | Literal["auto"] | None

#: Of the free memory, how much is used: fragments, and what else runs on the machine, take some.
SHARE = 0.8
# Attention may take memory by the square of a row's length. Up to this much beyond the longest row that was measured,
# the share that is left free covers it.
_LONGER = 1.2

_log = logging.getLogger(__name__)


B = TypeVar("B", bound="Batch")


class Batch(Protocol):
    """Rows of trees, and what belongs to them."""

    tree: TreeBatch

    def rows(self: B, start: int, stop: int) -> B:
        """Some of the rows, with what belongs to them."""


def rows_that_fit(budget: float, measured: Sequence[tuple[int, int]], width: int, rows: int) -> int:
    """How many of ``rows`` rows of ``width`` tokens surely fit into ``budget`` bytes; at least 1.

    Memory grows with the tokens at every moment of a step, from something fixed that is not negative. Its peak is then
    at most in proportion to that of a smaller step, and most of the time less.

    Args:
        budget: bytes.
        measured: tokens and peak bytes of steps.
        width: tokens of a row.
        rows: how many there are.
    """

    def at_most(tokens: int) -> float:
        smaller = [taken * tokens / of for of, taken in measured if of <= tokens]
        return min(smaller) if smaller else min(taken for _, taken in measured)

    return next((count for count in range(rows, 1, -1) if at_most(count * width) <= budget), 1)


class MicroBatches:
    """Computes steps in groups of rows.

    Args:
        size: rows of a group; ``auto`` measures where a batch has longer rows than any before, first a step of one row
            and then larger ones that are known to fit, and takes as many as fit into what is free at each step; None
            always takes the whole batch.

    Raises:
        ValueError: the size is below 1.
    """

    def __init__(self, size: MicroBatchSize = None) -> None:
        if size not in (None, "auto") and not (isinstance(size, int) and size >= 1):
            raise ValueError(f"micro_batch must be at least 1, auto or None, found {size!r}")
        self.size = size
        self._width = 0  # of the rows that were measured
        self._measured: list[tuple[int, int]] = []  # tokens and peak bytes of steps

    def total(self, module: nn.Module, batch: B, part: Callable[[B], Tensor]) -> Tensor:
        """The sum of ``part`` over the groups of a batch.

        Args:
            module: what trains.
            batch: all rows.
            part: what a group adds to the whole; computed twice of most groups, so it must do nothing else.
        """
        rows = len(batch.tree.trees)
        size = self._size(module, batch, part) if rows > 1 and torch.is_grad_enabled() else rows
        if size >= rows:
            return part(batch)
        found = []
        for start in range(0, rows, size):
            group = batch.rows(start, min(start + size, rows))
            last = start + size >= rows
            found.append(part(group) if last else checkpoint(part, group, use_reentrant=False))
        return torch.stack(found).sum(0)

    def _size(self, module: nn.Module, batch: B, part: Callable[[B], Tensor]) -> int:
        if self.size is None:
            return len(batch.tree.trees)
        if isinstance(self.size, int):
            return self.size
        rows, width = batch.tree.input_ids.shape
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        # Adam's two moments, which come with its first step, and the gradients of the groups that were through before.
        beside = 3 * sum(parameter.numel() * parameter.element_size() for parameter in parameters)
        device = batch.tree.input_ids.device

        def fitting() -> int:
            return rows_that_fit(SHARE * free_memory(device) - beside, self._measured, width, rows)

        if width > _LONGER * self._width:
            self._width, self._measured = width, []
            size = 1
            # The longest row first. What pads is not counted, since it need not be computed: see `Passes`.
            lengths = [len(tree) for tree in batch.tree.trees]
            start = lengths.index(max(lengths))
            while True:
                tokens = sum(lengths[start : start + size])
                self._measured.append((tokens, _step_memory(batch.rows(start, start + size), part, parameters)))
                _log.debug("a step of %d tokens takes %.0f MB", tokens, self._measured[-1][1] / 1e6)
                start = 0
                larger = fitting()
                if larger <= size or larger == rows:
                    break
                size = larger
        return fitting()


def _step_memory(batch: B, part: Callable[[B], Tensor], parameters: Sequence[nn.Parameter]) -> int:
    """The bytes that a step takes at most, without a trace of it elsewhere."""
    device = batch.tree.input_ids.device

    def step() -> None:
        torch.autograd.grad(part(batch).sum(), parameters, allow_unused=True)

    accelerators = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(accelerators, device_type="cuda" if device.type == "cpu" else device.type):
        return memory_taken(device, step)
