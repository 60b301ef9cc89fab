"""Ridge regression: the optimum of a linear head under the squared error."""

from __future__ import annotations

import torch
from torch import Tensor


def fit_ridge(features: Tensor, targets: Tensor, *, prior: float) -> Tensor:
    """The weight that minimises Σ ½ error² + prior / 2 · |weight|², the bias being free.

    Args:
        features: (n, width).
        targets: (n,).
        prior: precision of a normal prior on the weights, in units of the errors' precision. Higher keeps them smaller.

    Returns:
        Weight (width,), float64, on the features' device.

    Raises:
        ValueError: there is no sample.
    """
    if len(targets) == 0:
        raise ValueError("a head needs samples to be fitted to")
    x, y = features.detach().double(), targets.detach().double()
    x, y = x - x.mean(0), y - y.mean()
    inner = x.T @ x + prior * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    weight: Tensor = torch.linalg.solve(inner, x.T @ y)
    return weight
