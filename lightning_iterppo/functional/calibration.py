"""How well predicted values agree with what happened."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional import mean_squared_error
from torchmetrics.functional.classification import binary_auroc, binary_calibration_error


def calibration_figures(logits: Tensor, returns: Tensor) -> dict[str, float | None]:
    """Figures of predictions on samples that they were not fitted to.

    A return between 0 and 1 (γ < 1) counts as the event it comes from in ``auroc`` and ``ece``, which are about events.

    Args:
        logits: of the predicted returns, (n,).
        returns: observed, in [0, 1], (n,).

    Returns:
        ``auroc``, ``brier`` (mean squared error), ``ece`` (expected calibration error, 10 bins),
        ``explained_variance``, ``brier_constant`` (the Brier score of the best constant prediction, which knows these
        returns' mean), ``loss`` (mean cross-entropy) and ``turns`` (n). None, not 0, where a figure has no meaning: all
        ended alike, so that there is nothing to rank or to explain.

    Raises:
        ValueError: there is no sample.
    """
    if len(returns) == 0:
        raise ValueError("calibration needs samples")
    logits, returns = logits.detach().float(), returns.detach().float()
    predicted, event = torch.sigmoid(logits), (returns > 0).long()
    variance = float(returns.double().var(unbiased=False))
    unexplained = float((returns - predicted).double().var(unbiased=False))
    alike = bool(event.all()) or not bool(event.any())
    return {
        "auroc": None if alike else float(binary_auroc(predicted, event)),
        "brier": float(mean_squared_error(predicted, returns)),
        "ece": float(binary_calibration_error(predicted, event, n_bins=10)),
        "explained_variance": None if variance < 1e-6 else 1 - unexplained / variance,
        "brier_constant": variance,
        "loss": float(F.binary_cross_entropy_with_logits(logits, returns)),
        "turns": float(len(returns)),
    }
