"""Measures tokens and conversations per second of every phase, and the peak memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lightning_iterppo.callbacks.outer import OuterCallback
from lightning_iterppo.callbacks.phase_clock import PhaseClock
from lightning_iterppo.machine import peak_memory_bytes

if TYPE_CHECKING:
    from lightning_iterppo.loop import IterativePPOLoop


class ThroughputMonitor(OuterCallback):
    """Puts these figures into ``loop.metrics``; one that was not measured is left out, never 0.

    - ``throughput/PHASE_tokens_per_second``, for ``collect``, ``evaluate``, ``improve`` and every other phase that
      counts tokens: the whole phase, its set-up included, so it is what a run really gets and less than the engine's
      best;
    - ``throughput/PHASE_conversations_per_second``, for phases that count conversations;
    - ``memory/peak_bytes``: the most memory this process has held, before a resume included;
    - ``memory/accelerator_peak_bytes``: the most the accelerator's allocator has held, if there is one that counts.

    Under several processes each measures itself.

    Hooks: all outer ones. It takes no arguments.
    """

    def __init__(self) -> None:
        self._clock = PhaseClock()
        self._peaks: dict[str, int] = {}

    def on_run_start(self, loop: IterativePPOLoop) -> None:
        """Starts the clock."""
        self._clock.begin()
        self._look(loop)

    def on_progress(self, loop: IterativePPOLoop) -> None:
        """Brings the running phase's speed up to date."""
        self._speed(loop)

    def on_iteration_start(self, loop: IterativePPOLoop) -> None:
        """Notes the time, from which the iteration's first phase counts."""
        self._look(loop)

    def on_collect_end(self, loop: IterativePPOLoop) -> None:
        """Speed of collecting, and memory."""
        self._look(loop)

    def on_critic_fit_end(self, loop: IterativePPOLoop) -> None:
        """Speed of fitting Q, and memory."""
        self._look(loop)

    def on_improve_end(self, loop: IterativePPOLoop) -> None:
        """Speed of the improvement, and memory."""
        self._look(loop)

    def on_iteration_end(self, loop: IterativePPOLoop) -> None:
        """Memory of the whole iteration."""
        self._look(loop)

    def on_run_end(self, loop: IterativePPOLoop) -> None:
        """Memory of the whole run."""
        self._look(loop)

    def state_dict(self) -> dict[str, Any]:
        """The peaks so far."""
        return {"peaks": dict(self._peaks)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what `state_dict` gave."""
        self._peaks = dict(state_dict["peaks"])

    def _look(self, loop: IterativePPOLoop) -> None:
        self._speed(loop)
        for name, peak in (
            ("memory/peak_bytes", peak_memory_bytes()),
            ("memory/accelerator_peak_bytes", accelerator_peak_bytes()),
        ):
            if peak is not None:
                self._peaks[name] = max(peak, self._peaks.get(name, 0))
        loop.metrics.update({name: float(peak) for name, peak in self._peaks.items()})

    def _speed(self, loop: IterativePPOLoop) -> None:
        self._clock.observe(loop.progress)
        run = self._clock.running
        assert run is not None
        name = run.phase.replace("-", "_")
        for what, speed in (("tokens", run.tokens_per_second), ("conversations", run.conversations_per_second)):
            if speed is not None:
                loop.metrics[f"throughput/{name}_{what}_per_second"] = speed


def accelerator_peak_bytes() -> int | None:
    """The most memory PyTorch has allocated on the accelerator so far; None without one or if it does not count."""
    # torch.accelerator is newer than the oldest PyTorch supported, and not every kind of device keeps a peak (MPS).
    accelerator = getattr(torch, "accelerator", None)
    if accelerator is None or not accelerator.is_available():
        return None
    module = torch.get_device_module(accelerator.current_accelerator())
    peak = getattr(module, "max_memory_allocated", None)
    return None if peak is None else int(peak())
