"""How well predicted values agree with what happened."""

from __future__ import annotations

from torch import Tensor
from torchmetrics.functional import mean_squared_error
from torchmetrics.functional.classification import binary_auroc, binary_calibration_error


def calibration_figures(
    predicted: Tensor, returns: Tensor, losses: Tensor, *, probability: bool = True
) -> dict[str, float | None]:
    """Figures of predictions on samples that they were not fitted to.

    A return between 0 and 1 (γ < 1) counts as the event it comes from in ``auroc`` and ``ece``, which are about events.

    Args:
        predicted: the predicted returns, (n,).
        returns: observed, (n,).
        losses: of the predictions, whichever loss it was that was fitted, (n,).
        probability: whether the returns are of events, in [0, 1].

    Returns:
        ``auroc``, ``brier`` (mean squared error), ``ece`` (expected calibration error, 10 bins),
        ``explained_variance``, ``brier_constant`` (the Brier score of the best constant prediction, which knows these
        returns' mean), ``loss`` (the mean) and ``turns`` (n). None, not 0, where a figure has no meaning: all ended
        alike, so that there is nothing to rank or to explain, or there are no events.

    Raises:
        ValueError: there is no sample.
    """
    if len(returns) == 0:
        raise ValueError("calibration needs samples")
    predicted, returns = predicted.detach().float(), returns.detach().float()
    event = (returns > 0).long()
    variance = float(returns.double().var(unbiased=False))
    unexplained = float((returns - predicted).double().var(unbiased=False))
    alike = bool(event.all()) or not bool(event.any())
    ranked = probability and not alike
    return {
        "auroc": float(binary_auroc(predicted, event)) if ranked else None,
        "brier": float(mean_squared_error(predicted, returns)),
        "ece": float(binary_calibration_error(predicted, event, n_bins=10)) if probability else None,
        "explained_variance": None if variance < 1e-6 else 1 - unexplained / variance,
        "brier_constant": variance,
        "loss": float(losses.detach().float().mean()),
        "turns": float(len(returns)),
    }
