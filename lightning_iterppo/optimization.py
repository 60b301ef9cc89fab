"""The optimiser that all modules share: AdamW, its rate rising linearly first and, if asked, falling to 0."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR


def adamw(
    groups: Iterable[tuple[Iterable[nn.Parameter], float]],
    *,
    warmup_steps: int,
    weight_decay: float = 0.0,
    decay_steps: int | None = None,
    epsilon: float = 1e-8,
) -> dict[str, Any]:
    """What ``configure_optimizers`` returns.

    Args:
        groups: parameters and their learning rate, one pair a group; an empty group is left out.
        warmup_steps: steps over which the rate rises from 0; Adam's first steps are its least certain ones.
        weight_decay: AdamW's.
        decay_steps: steps after which the rate is 0. A fit that ends at its full rate ends wherever its last batches
            pulled it: a cloned policy then speaks like the last few conversations, not like all. None keeps the rate.
        epsilon: AdamW's. Gradients far below it make steps far below the learning rate, where AdamW would otherwise
            scale any gradient up to it, noise too.
    """
    listed = [{"params": list(parameters), "lr": rate} for parameters, rate in groups]
    optimizer = AdamW(
        [group for group in listed if group["params"]], betas=(0.9, 0.98), eps=epsilon, weight_decay=weight_decay
    )

    def rate(step: int) -> float:
        rising = (step + 1) / (warmup_steps + 1)
        falling = 1.0 if decay_steps is None else max(0.0, 1 - step / decay_steps)
        return min(1.0, rising, falling)

    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, rate), "interval": "step"}}
