"""Micro-batches: a training step over groups of a batch's rows, so that only one group's activations are in memory.

The groups are parts of one step, and not steps of their own: their losses are added up and go backward once. What is
learnt does not depend on the memory at hand, and Lightning's precision, clipping, accumulation and strategies see an
ordinary step. Every group but the last is computed again in the backward pass, which is the price; the last is not,
since the backward pass begins with it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
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


def rows_that_fit(free: int, fixed: float, per_token: float, width: int) -> int:
    """How many rows of ``width`` tokens fit into `SHARE` of ``free`` bytes, beside ``fixed`` ones; at least 1."""
    return max(1, int((SHARE * free - fixed) / max(per_token * width, 1.0)))


class MicroBatches:
    """Computes steps in groups of rows.

    Args:
        size: rows of a group; ``auto`` measures two small groups where a batch has longer rows than any before, and
            takes as many as fit into what is free then; None always takes the whole batch.

    Raises:
        ValueError: the size is below 1.
    """

    def __init__(self, size: MicroBatchSize = None) -> None:
        if size not in (None, "auto") and not (isinstance(size, int) and size >= 1):
            raise ValueError(f"micro_batch must be at least 1, auto or None, found {size!r}")
        self.size = size
        self._measured: tuple[int, float, float] | None = None  # width, fixed bytes, bytes a token

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
        width = batch.tree.input_ids.shape[1]
        if self._measured is None or width > _LONGER * self._measured[0]:
            self._measured = self._measure(module, batch, part)
        _, fixed, per_token = self._measured
        return rows_that_fit(free_memory(batch.tree.input_ids.device), fixed, per_token, width)

    def _measure(self, module: nn.Module, batch: B, part: Callable[[B], Tensor]) -> tuple[int, float, float]:
        """What a step takes, as a straight line through steps of one row and of two."""
        device, width = batch.tree.input_ids.device, batch.tree.input_ids.shape[1]
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        # Adam's two moments, which come with its first step.
        moments = 2.0 * sum(parameter.numel() * parameter.element_size() for parameter in parameters)

        def step(rows: int) -> int:
            def work() -> None:
                torch.autograd.grad(part(batch.rows(0, rows)).sum(), parameters, allow_unused=True)

            return memory_taken(device, work)

        accelerators = [] if device.type == "cpu" else [device]
        with torch.random.fork_rng(accelerators, device_type="cuda" if device.type == "cpu" else device.type):
            one = step(1)
            # Nothing is known yet of a second row but that it takes no more than the first one and all that is fixed.
            two = step(2) if 2 * one + moments < SHARE * free_memory(device) else 2 * one
        per_row = max(two - one, 0)
        fixed = moments + max(one - per_row, 0)
        _log.debug("a step takes %.0f MB and %.1f MB a row of %d tokens", fixed / 1e6, per_row / 1e6, width)
        return width, fixed, per_row / width
