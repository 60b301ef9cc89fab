"""What the outputs of the critic's head mean, and how they are fitted to returns."""

from __future__ import annotations

import math
from typing import Final, Literal, Protocol, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

CriticLoss = Literal["bce", "mse", "hl-gauss"]
CRITIC_LOSSES: Final[tuple[str, ...]] = get_args(CriticLoss)


class Objective(Protocol):
    """A loss whose minimiser is the expected return, and the value that outputs stand for.

    Attributes:
        outputs: how many numbers the head gives for an action.
        bounds: the least and the greatest return that can be fitted; None fits any.
        probability: whether a value is the probability of an event.
    """

    outputs: int
    bounds: tuple[float, float] | None
    probability: bool

    def values(self, outputs: Tensor) -> Tensor:
        """(n,), or (n, outputs) when there are several, to values (n,)."""

    def losses(self, outputs: Tensor, returns: Tensor) -> Tensor:
        """The loss of every sample: outputs as for `values`, returns (n,), gives (n,)."""


class BinaryCrossEntropy:
    """The value is a probability; returns lie in [0, 1]."""

    outputs = 1
    bounds: tuple[float, float] | None = (0.0, 1.0)
    probability = True

    def values(self, outputs: Tensor) -> Tensor:
        """The logistic function of the output."""
        return torch.sigmoid(outputs)

    def losses(self, outputs: Tensor, returns: Tensor) -> Tensor:
        """Cross-entropy, in nats."""
        return F.binary_cross_entropy_with_logits(outputs, returns, reduction="none")


class SquaredError:
    """The value is a number, whatever it may be; it starts in the middle between ``low`` and ``high``.

    Args:
        low: about the least return.
        high: about the greatest. Errors are measured in ``high - low``, so that a learning rate means the same for
            returns of any size.
    """

    outputs = 1
    bounds: tuple[float, float] | None = None
    probability = False

    def __init__(self, low: float = 0.0, high: float = 1.0) -> None:
        self.middle = (low + high) / 2
        self.scale = high - low

    def outputs_of(self, returns: Tensor) -> Tensor:
        """The outputs whose values these returns are."""
        return (returns - self.middle) / self.scale

    def values(self, outputs: Tensor) -> Tensor:
        """The output in the returns' unit."""
        return self.middle + self.scale * outputs

    def losses(self, outputs: Tensor, returns: Tensor) -> Tensor:
        """The squared error over the squared range."""
        return (outputs - self.outputs_of(returns)).square()


class HLGauss:
    """The value is the mean of a histogram that is fitted to the return, spread out by a normal distribution.

    Cross-entropy has steadier gradients than the squared error and takes outliers more easily (Imani and White 2018;
    Farebrother et al. 2024, "Stop regressing", section 3).

    Args:
        low: the least return.
        high: the greatest.
        bins: of equal width between the two; some more lie beyond either end, so that the ends are not drawn inwards.
        spread: the normal's deviation, in bins.
    """

    probability = False

    def __init__(self, low: float = 0.0, high: float = 1.0, bins: int = 32, spread: float = 0.75) -> None:
        self.bounds: tuple[float, float] | None = (low, high)
        width = (high - low) / bins
        beyond = math.ceil(4 * spread)
        self.outputs = bins + 2 * beyond
        self.deviation = spread * width
        self.edges = low + width * (torch.arange(self.outputs + 1, dtype=torch.float64) - beyond)

    def values(self, outputs: Tensor) -> Tensor:
        """The histogram's mean."""
        centres = (self.edges[1:] + self.edges[:-1]) / 2
        return outputs.softmax(-1) @ centres.to(outputs)

    def losses(self, outputs: Tensor, returns: Tensor) -> Tensor:
        """Cross-entropy to the spread-out return, in nats."""
        below: Tensor = torch.special.ndtr((self.edges.to(returns) - returns[..., None]) / self.deviation)
        wanted = below[..., 1:] - below[..., :-1]
        return -(wanted / wanted.sum(-1, keepdim=True) * outputs.log_softmax(-1)).sum(-1)


def make_objective(loss: CriticLoss, low: float = 0.0, high: float = 1.0) -> Objective:
    """The objective of a name.

    Args:
        loss: which.
        low: the least return.
        high: the greatest.

    Raises:
        ValueError: no such loss, or no range.
    """
    if loss not in CRITIC_LOSSES:
        raise ValueError(f"loss must be one of {', '.join(CRITIC_LOSSES)}, found {loss!r}")
    if not low < high:
        raise ValueError(f"the returns' range must have its low end below its high end, found {low:g} to {high:g}")
    if loss == "bce":
        if (low, high) != (0.0, 1.0):
            raise ValueError(f"bce fits returns from 0 to 1, found {low:g} to {high:g}; take mse or hl-gauss")
        return BinaryCrossEntropy()
    return SquaredError(low, high) if loss == "mse" else HLGauss(low, high)
