"""What every phase of the loop works with: a fresh Trainer for a fit, the progress to keep current, its own seeds."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import lightning.pytorch as pl
from lightning.pytorch.loggers import Logger

from lightning_iterppo.machine import release_memory
from lightning_iterppo.progress import FitProgress, Phase, Progress
from lightning_iterppo.trainer import TrainerFactory


@dataclass(slots=True)
class PhaseTools:
    """Shared by the loop and its phases.

    Args:
        trainers: makes each fit's Trainer.
        modules: those that sample and score between fits, on this process's device.
        moved: called whenever ``progress`` has moved.
        callbacks: Lightning callbacks for every fit.
        loggers: Lightning loggers for every fit.
        seed: the run's.
        progress: where the run is.
        metrics: the newest value of every logged metric.
        steps: optimiser steps so far.
    """

    trainers: TrainerFactory
    modules: Sequence[pl.LightningModule]
    moved: Callable[[], None]
    callbacks: Sequence[pl.Callback] = ()
    loggers: Sequence[Logger] = ()
    seed: int = 1
    progress: Progress = field(default_factory=Progress)
    metrics: dict[str, float] = field(default_factory=dict)
    steps: int = 0

    def seed_of(self, name: str) -> int:
        """A seed for something by name: what is repeated after a kill gets the randomness it had."""
        return (self.seed * 1_000_003 + zlib.crc32(name.encode())) % 2**31

    def begin(self, phase: Phase, total: int = 0, unit: str = "") -> None:
        """A new phase, shown at once."""
        release_memory()
        self.progress.begin(phase, total=total, unit=unit)
        self.moved()

    def place(self) -> None:
        """Every module to this process's device; Lightning moves a fitted one off it."""
        for module in self.modules:
            module.to(self.trainers.device)

    def fit(
        self,
        module: pl.LightningModule,
        data: pl.LightningDataModule,
        epochs: int,
        *,
        callbacks: Sequence[pl.Callback] = (),
        rounds: bool = False,
    ) -> None:
        """One fit with a Trainer of its own.

        Args:
            module: what is trained.
            data: on what.
            epochs: epochs, or rounds.
            callbacks: for this fit only.
            rounds: a new training dataloader every epoch.
        """
        counter = FitProgress(self.progress, self.steps, self.moved)
        trainer = self.trainers.make(
            max_epochs=epochs, callbacks=[counter, *callbacks, *self.callbacks], logger=self.loggers, rounds=rounds
        )
        trainer.fit(module, datamodule=data)
        let_go(trainer, module)
        self.place()
        self.steps += trainer.global_step
        self.metrics.update({key: float(value) for key, value in trainer.callback_metrics.items() if key != "step"})

    def validate(self, module: pl.LightningModule, data: pl.LightningDataModule) -> None:
        """Measures a module on its validation data."""
        self.trainers.make(max_epochs=1, logger=self.loggers).validate(module, datamodule=data, verbose=False)
        self.place()


def let_go(trainer: pl.Trainer, module: pl.LightningModule) -> None:
    """Frees what a fit that is over held: its optimisers' states, twice the trained weights, and the last gradients.

    The module keeps its Trainer, and that its optimisers, until the next fit is under way.
    """
    for optimizer in trainer.optimizers:
        optimizer.state.clear()
    module.zero_grad(set_to_none=True)
