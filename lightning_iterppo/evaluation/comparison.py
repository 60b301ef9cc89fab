"""Is one policy better than another, how surely, and what would it cost to be wrong? The mathematics alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lightning_iterppo.evaluation.off_policy import Array, resamples

DRAWS = 100_000


@dataclass(frozen=True)
class Comparison:
    """What is believed of the candidate's value minus the current policy's.

    Args:
        difference: its mean.
        ci95: its central 95 %.
        probability_better: that it is above 0.
        expected_regret: the mean of what is lost by deploying the candidate where the current one is better,
            E[max(0, -difference)], in units of the return.
    """

    difference: float
    ci95: tuple[float, float]
    probability_better: float
    expected_regret: float

    @classmethod
    def of_draws(cls, differences: Array) -> Comparison:
        """From draws of the difference; one that is exactly 0 counts half."""
        low, high = np.quantile(differences, [0.025, 0.975])
        return cls(
            difference=float(differences.mean()),
            ci95=(float(low), float(high)),
            probability_better=float((differences > 0).mean() + (differences == 0).mean() / 2),
            expected_regret=float(np.maximum(0.0, -differences).mean()),
        )

    def to_json(self) -> dict[str, Any]:
        """For promotion.json."""
        return asdict(self)


def of_outcomes(candidate: Sequence[float], current: Sequence[float], *, seed: int = 0) -> Comparison:
    """From the outcomes of fresh conversations of either.

    Outcomes that are all 0 or 1 give Beta posteriors with uniform priors, Beta(1 + won, 1 + lost); amounts give the
    bootstrap of either mean.

    Raises:
        ValueError: one of them has no outcome.
    """
    if not candidate or not current:
        raise ValueError("either policy needs at least one conversation with a known outcome")
    draws = []
    for place, outcomes in enumerate((candidate, current)):
        values = np.array(outcomes, dtype=np.float64)
        if np.isin([*candidate, *current], (0, 1)).all():
            won = int(values.sum())
            rng = np.random.default_rng([seed, place])
            draws.append(rng.beta(1 + won, 1 + len(values) - won, size=DRAWS))
        else:
            draws.append(resamples(len(values), 4000, seed + place) @ values / len(values))
    return Comparison.of_draws(draws[0] - draws[1])
