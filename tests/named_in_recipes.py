"""Classes that the tests' recipes name by import path: a customer of a dozen lines, and a callback that ends a run."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

from lightning_iterppo.customers import CustomerReply, Message


class WordCustomer:
    """Names a colour and is won by an agent that says the same one within two turns."""

    def reset(self, seed: int) -> str:
        self.colour = ("red", "blue")[seed % 2]
        self.turns = 0
        return f"{self.colour} ?"

    def reply(self, history: list[Message]) -> CustomerReply:
        self.turns += 1
        if self.colour in history[-1].content.split():
            return CustomerReply("yes", reward=1.0, done=True)
        return CustomerReply("no", done=self.turns == 2)


class DroppingCustomer(WordCustomer):
    """Hangs up on every fifth conversation."""

    def reset(self, seed: int) -> str:
        self.seed = seed
        return super().reset(seed)

    def reply(self, history: list[Message]) -> CustomerReply:
        if self.seed % 5 == 1:
            raise ConnectionError("hung up")
        return super().reply(history)


class Interrupted(Exception):
    """The run was interrupted on purpose."""


class InterruptOnce(Callback):
    """Ends a run in the middle of a phase of its second iteration, the first time that it gets there.

    Args:
        phase: collect, evaluate or improve.
        marker: a file that says that it has happened.
        kill: end the process with SIGKILL, and not with an exception.
    """

    def __init__(self, phase: str, marker: str, kill: bool = False) -> None:
        self.phase, self.marker, self.kill = phase, Path(marker), kill
        self.counted = 0

    def on_progress(self, loop: Any) -> None:
        now = loop.progress
        if now.phase != self.phase or now.iteration != 1 or now.unit not in ("conversations", "batches"):
            return
        self.counted += 1
        if self.counted < 3 or self.marker.exists():
            return
        self.marker.write_text(self.phase)
        if self.kill:
            os.kill(os.getpid(), signal.SIGKILL)
        raise Interrupted(self.phase)
