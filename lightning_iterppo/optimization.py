"""The optimiser that all modules share: AdamW with a short linear warm-up."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR


def adamw_with_warmup(
    groups: Iterable[tuple[Iterable[nn.Parameter], float]], *, warmup_steps: int, weight_decay: float = 0.0
) -> dict[str, Any]:
    """What ``configure_optimizers`` returns.

    Args:
        groups: parameters and their learning rate, one pair a group; an empty group is left out.
        warmup_steps: steps over which the rate rises from 0; Adam's first steps are its least certain ones.
        weight_decay: AdamW's.
    """
    listed = [{"params": list(parameters), "lr": rate} for parameters, rate in groups]
    optimizer = AdamW([group for group in listed if group["params"]], betas=(0.9, 0.98), weight_decay=weight_decay)
    schedule = LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / (warmup_steps + 1)))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
