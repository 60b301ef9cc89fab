"""Where a run is: the phase, how far it has come, and the callback that keeps that current during Lightning's fits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import lightning.pytorch as pl

from lightning_iterppo.machine import release_memory

# Often enough that freed memory does not pile up, and rarely enough to cost nothing beside the batches.
_BATCHES_A_RELEASE = 4

Phase = Literal["start", "logs", "warm-start", "before", "collect", "evaluate", "improve", "after", "score", "done"]


@dataclass(slots=True)
class Progress:
    """Where a run is.

    Args:
        phase: what is being done.
        iteration: which iteration, from 0.
        round: inside an improvement, which round, from 0.
        done: how much of the phase's present step is done, in ``unit``.
        total: how much there is; 0 when not known.
        unit: what is counted.
        tokens: generated or trained so far in this phase.
        failed: conversations of this phase that their customers broke off.
    """

    phase: Phase = "start"
    iteration: int = 0
    round: int = 0
    done: int = 0
    total: int = 0
    unit: str = ""
    tokens: int = 0
    failed: int = 0

    def begin(self, phase: Phase, *, total: int = 0, unit: str = "") -> None:
        """A new phase."""
        self.phase, self.round, self.tokens, self.failed = phase, 0, 0, 0
        self.step(total, unit)

    def step(self, total: int, unit: str) -> None:
        """A new step inside the phase."""
        self.done, self.total, self.unit = 0, total, unit


class FitProgress(pl.Callback):
    """Counts training batches into a `Progress`, and gives a phase's metrics a step that goes on from the last phase.

    Args:
        progress: what to keep current.
        first_step: optimiser steps of the phases before.
        moved: called after every change.
    """

    def __init__(self, progress: Progress, first_step: int, moved: Callable[[], None]) -> None:
        self.progress = progress
        self.first_step = first_step
        self.moved = moved

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The phase's batches are known now; a round announces its own."""
        if self.progress.phase != "improve":
            batches = int(trainer.num_training_batches)
            self.progress.step(batches * int(trainer.max_epochs or 1), "batches")
            self.moved()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """One more batch."""
        self.progress.done += 1
        self.progress.tokens += batch.tree.counted_tokens
        pl_module.log("step", float(self.first_step + trainer.global_step))
        if (batch_idx + 1) % _BATCHES_A_RELEASE == 0:
            release_memory()
        self.moved()

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Held-out figures belong to the step that they were measured after."""
        pl_module.log("step", float(self.first_step + trainer.global_step))
