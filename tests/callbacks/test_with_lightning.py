"""The callbacks are ordinary Lightning callbacks: a Trainer takes all of them and saves their states."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
import pytest
from lightning.pytorch.demos.boring_classes import BoringModel

from lightning_iterppo import callbacks


def trainer_with(adaptive: callbacks.AdaptiveKL, directory: Path, steps: int) -> pl.Trainer:
    everything: list[pl.Callback] = [
        adaptive,
        callbacks.ConversationLogger(),
        callbacks.IterationCheckpoint(),
        callbacks.RichProgress(),
        callbacks.StopAtOutcome(target=0.9),
        callbacks.ThroughputMonitor(),
    ]
    return pl.Trainer(
        default_root_dir=directory,
        callbacks=everything,
        max_steps=steps,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


@pytest.mark.filterwarnings("ignore:.*before the epoch ended.*", "ignore:.*LeafSpec.*")
def test_a_trainer_runs_with_all_of_them_and_keeps_their_states(tmp_path: Path) -> None:
    adaptive = callbacks.AdaptiveKL(target=0.1)
    adaptive.coefficient = 0.25
    trainer = trainer_with(adaptive, tmp_path, steps=1)
    trainer.fit(BoringModel())
    trainer.save_checkpoint(tmp_path / "state.ckpt")

    restored = callbacks.AdaptiveKL(target=0.1)
    # weights_only: the states are plain data, so that a checkpoint can be read without trusting it.
    trainer_with(restored, tmp_path, steps=2).fit(BoringModel(), ckpt_path=tmp_path / "state.ckpt", weights_only=True)
    assert restored.coefficient == 0.25
