"""Heads: a value for a hidden state."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ScalarHead(nn.Module):
    """One number for a hidden state, or several: a normalised linear map, zero at the start, kept in float32.

    The norm makes the head's learning rate mean the same on every trunk, whatever the scale of its hidden states.

    Args:
        hidden_size: the trunk's width.
        outputs: how many numbers.
    """

    def __init__(self, hidden_size: int, outputs: int = 1) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size, elementwise_affine=False)
        self.linear = nn.Linear(hidden_size, outputs)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def tensors(self) -> dict[str, Tensor]:
        """Its weights by name, no copies: as `state_dict`, but whole where they are whole for a while."""
        return {key: parameter.data for key, parameter in self.named_parameters()}

    def seen(self, hidden: Tensor) -> Tensor:
        """What the linear map sees of (…, hidden), of the same shape."""
        normal: Tensor = self.norm(hidden.to(self.linear.weight.dtype))
        return normal

    def forward(self, hidden: Tensor) -> Tensor:
        """(…, hidden) to (…), or to (…, outputs) when there are several."""
        with torch.autocast(hidden.device.type, enabled=False):
            value: Tensor = self.linear(self.seen(hidden))
        return value.squeeze(-1) if value.shape[-1] == 1 else value
