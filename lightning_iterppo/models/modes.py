"""Training and evaluation mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """A module without dropout; afterwards every part of it is in the mode that it was in.

    `torch.nn.Module.train` would put all parts in one: a backbone that was loaded for evaluation, and has dropout of
    its own, would have it from then on, beside adapters that are in training.
    """
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True
