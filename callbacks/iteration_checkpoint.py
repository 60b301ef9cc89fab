"""Keeps the checkpoints of the last few iterations and of the best one, and deletes the others."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lightning_iterppo.callbacks.arguments import whole_number
from lightning_iterppo.callbacks.outer import OuterCallback

if TYPE_CHECKING:
    from lightning_iterppo.loop import IterativePPOLoop


class IterationCheckpoint(OuterCallback):
    """Writes ``RUN/checkpoints/iteration-000/`` (policy and critic, safetensors) after every iteration.

    The best iteration is the one with the highest held-out outcome rate after it, ``loop.evaluations``; of two equal
    ones the earlier. An iteration that was not measured is never the best: the rate of the conversations it collected
    belongs to the policy it started from. Only directories that this callback wrote in this run are ever deleted.

    Hooks: ``on_run_start`` (is there a run directory?), ``on_iteration_end`` (write, then delete).

    Args:
        keep_last: how many of the newest iterations to keep, at least 1. Raising it costs disk space (with LoRA a few
            megabytes an iteration, with full fine-tuning the whole model twice); lowering it leaves fewer policies to
            go back to.
        keep_best: whether to keep the best iteration also when it is older than the last ``keep_last``.
    """

    needs_run_directory = True

    def __init__(self, keep_last: int = 2, keep_best: bool = True) -> None:
        self.keep_last = whole_number("IterationCheckpoint", "keep_last", keep_last, 1)
        if not isinstance(keep_best, bool):
            raise MisconfigurationException(
                f"IterationCheckpoint(keep_best=…) must be true or false, found {keep_best!r}"
            )
        self.keep_best = keep_best
        self.best_iteration: int | None = None
        self.best_outcome_rate: float | None = None
        self._written: list[int] = []

    @property
    def kept(self) -> list[int]:
        """The iterations whose checkpoint this callback wrote and has not deleted."""
        return list(self._written)

    def on_run_start(self, loop: IterativePPOLoop) -> None:
        """Says at once, not after an hour, that there is nowhere to write."""
        if loop.run_dir is None:
            raise MisconfigurationException(
                "IterationCheckpoint needs a run directory; give the loop one or leave it out"
            )

    def on_iteration_end(self, loop: IterativePPOLoop) -> None:
        """Writes this iteration's checkpoint and deletes those that need not be kept."""
        iteration = loop.summary.iterations[-1].iteration
        loop.save_checkpoint(iteration)
        self._written = sorted({*self._written, iteration})
        measured = loop.evaluations.get(iteration)
        if measured is not None and (self.best_outcome_rate is None or measured.outcome_rate > self.best_outcome_rate):
            self.best_iteration, self.best_outcome_rate = iteration, measured.outcome_rate

        keep = set(self._written[-self.keep_last :])
        if self.keep_best and self.best_iteration is not None:
            keep.add(self.best_iteration)
        for old in [i for i in self._written if i not in keep]:
            if self._deleted(loop, old):
                self._written.remove(old)

    def state_dict(self) -> dict[str, Any]:
        """What was written and which iteration was the best, so that a resumed run goes on keeping the right ones."""
        return {
            "written": list(self._written),
            "best_iteration": self.best_iteration,
            "best_outcome_rate": self.best_outcome_rate,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what `state_dict` gave."""
        self._written = list(state_dict["written"])
        self.best_iteration = state_dict["best_iteration"]
        self.best_outcome_rate = state_dict["best_outcome_rate"]

    def _deleted(self, loop: IterativePPOLoop, iteration: int) -> bool:
        """Deletes one checkpoint; False when the file system refused, and then it is tried again next time."""
        if not loop.is_main:
            return True
        assert loop.run_dir is not None  # save_checkpoint has just written into it
        try:
            _delete(loop.run_dir.checkpoint(iteration))
        except OSError as error:
            # A leftover directory costs space; an aborted run costs the training. So it is said, and training goes on.
            rank_zero_warn(f"IterationCheckpoint could not delete the checkpoint of iteration {iteration}: {error}")
            return False
        return True


def _delete(directory: Path) -> None:
    # Renamed first: a process killed in the middle must not leave half a checkpoint under a whole one's name.
    doomed = directory.with_name(f".{directory.name}.deleted")
    if doomed.exists():
        shutil.rmtree(doomed)
    if directory.is_dir() and not directory.is_symlink():  # a link was put there by somebody else
        directory.rename(doomed)
        shutil.rmtree(doomed)
