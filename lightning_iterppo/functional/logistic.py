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


def fit_offset(logits: Tensor, targets: Tensor) -> Tensor:
    """The number to add to logits so that the mean prediction is the mean target.

    The targets' mean is taken with half an event and half a non-event more, so that it is never 0 or 1 by chance.

    Args:
        logits: (n,).
        targets: (n,), in [0, 1].

    Returns:
        The offset (), float64.

    Raises:
        ValueError: there is no sample.
    """
    if len(targets) == 0:
        raise ValueError("an offset needs samples to be fitted to")
    logits = logits.detach().double()
    wanted = (targets.detach().double().sum() + 0.5) / (len(targets) + 1)
    low = torch.full((), -60.0, dtype=torch.float64, device=logits.device)
    high = -low
    for _ in range(60):  # the mean prediction grows with the offset: halve the interval to float64's end
        middle = (low + high) / 2
        if torch.sigmoid(logits + middle).mean() < wanted:
            low = middle
        else:
            high = middle
    return (low + high) / 2
