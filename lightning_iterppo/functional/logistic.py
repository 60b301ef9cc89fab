"""Logistic regression by Newton-like steps to its optimum: for a head on fixed features, where gradient steps crawl."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def fit_logistic(features: Tensor, targets: Tensor, *, prior: float) -> tuple[Tensor, Tensor]:
    """Minimises Σ cross-entropy + prior / 2 · |weight|² with L-BFGS.

    Args:
        features: (n, width).
        targets: (n,), in [0, 1].
        prior: precision of a normal prior on the weights, not on the bias. Higher keeps them smaller.

    Returns:
        Weight (width,) and bias (), float64, on the features' device.

    Raises:
        ValueError: there is no sample.
    """
    if len(targets) == 0:
        raise ValueError("a head needs samples to be fitted to")
    x, y = features.detach().double(), targets.detach().double()
    share = y.mean().clamp(1e-3, 1 - 1e-3)
    weight = torch.zeros(x.shape[1], dtype=torch.float64, device=x.device, requires_grad=True)
    bias = torch.log(share / (1 - share)).clone().requires_grad_(True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=300, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(x @ weight + bias, y, reduction="sum")
        loss = loss + 0.5 * prior * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()
