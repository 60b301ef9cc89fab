"""Ends a run early: when the outcome rate is good enough, or when it has stopped getting better."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_iterppo.callbacks.arguments import real_number, whole_number
from lightning_iterppo.callbacks.outer import OuterCallback

if TYPE_CHECKING:
    from lightning_iterppo.loop import IterativePPOLoop


class StopAtOutcome(OuterCallback):
    """Sets ``loop.should_stop`` and ``loop.stop_reason`` at the end of an iteration, which is then the last.

    What it looks at is the held-out outcome rate of the iteration, ``loop.evaluations``; iterations that were not
    measured are passed over, and the rate before training, where known, is the first to beat. If the loop never
    measures held-out rates (``evaluate_every`` is 0), it is the rate of the conversations the iteration collected,
    which is that of the policy *before* its improvement: the final policy is then one improvement further than the rate
    that stopped the run.

    Either rate is an estimate from a limited number of conversations; a target that was reached by luck stops the run
    too.

    Hooks: ``on_iteration_end``.

    Args:
        target: stop as soon as the rate is at least this, in (0, 1]. Raising it trains longer.
        patience: stop when the rate has not improved for this many iterations, at least 1. Raising it bears more noise
            and costs more iterations.
        min_delta: how much higher than the best so far a rate must be to count as improved. Raising it stops sooner, on
            small gains that may be noise.
    """

    def __init__(self, target: float | None = None, patience: int | None = None, min_delta: float = 0.0) -> None:
        if target is None and patience is None:
            raise MisconfigurationException("StopAtOutcome needs a target, a patience or both; it has neither")
        if target is not None:
            target = real_number("StopAtOutcome", "target", target, above=0)
            if target > 1:
                raise MisconfigurationException(
                    f"StopAtOutcome(target=…) is a rate, so at most 1, found {target:g}; 80 % is 0.8"
                )
        self.target = target
        self.patience = None if patience is None else whole_number("StopAtOutcome", "patience", patience, 1)
        self.min_delta = real_number("StopAtOutcome", "min_delta", min_delta, least=0)
        self.best_outcome_rate: float | None = None
        self.best_iteration: int | None = None

    def on_iteration_end(self, loop: IterativePPOLoop) -> None:
        """Looks at the newest rate and stops the loop if there is reason to."""
        record = loop.summary.iterations[-1]
        held_out = bool(loop.settings.evaluate_every)
        measured = loop.evaluations.get(record.iteration) if held_out else record.collected
        if measured is None:
            return
        if self.best_outcome_rate is None and held_out and loop.summary.before is not None:
            self.best_outcome_rate, self.best_iteration = loop.summary.before.outcome_rate, -1

        rate = measured.outcome_rate
        if self.best_outcome_rate is None or rate > self.best_outcome_rate + self.min_delta:
            self.best_outcome_rate, self.best_iteration = rate, record.iteration
        assert self.best_iteration is not None
        waited = record.iteration - self.best_iteration

        if self.target is not None and rate >= self.target:
            self._stop(loop, f"the outcome rate {rate:.1%} has reached the target {self.target:.1%}")
        elif self.patience is not None and waited >= self.patience:
            count = "1 iteration" if waited == 1 else f"{waited} iterations"
            self._stop(loop, f"the outcome rate has not improved on {self.best_outcome_rate:.1%} for {count}")

    def state_dict(self) -> dict[str, Any]:
        """The best rate and when it was seen."""
        return {"best_outcome_rate": self.best_outcome_rate, "best_iteration": self.best_iteration}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what `state_dict` gave."""
        self.best_outcome_rate = state_dict["best_outcome_rate"]
        self.best_iteration = state_dict["best_iteration"]

    @staticmethod
    def _stop(loop: IterativePPOLoop, reason: str) -> None:
        loop.should_stop = True
        loop.stop_reason = reason
