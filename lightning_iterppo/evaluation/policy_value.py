"""The value of a policy from logs by three estimators, or why these logs cannot tell."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np

from lightning_iterppo.evaluation import fitted_q as fqe
from lightning_iterppo.evaluation.fitted_q import FeatureTurns
from lightning_iterppo.evaluation.off_policy import (
    Array,
    Estimate,
    LoggedTurns,
    Overlap,
    OverlapLimits,
    doubly_robust,
    overlap_of,
    per_decision,
    resamples,
    studentised,
)

ESTIMATORS = ("fqe", "pdwis", "doubly_robust")
_OVERLAP = [each.name for each in fields(Overlap)]


@dataclass(frozen=True)
class ValueSettings:
    """How a value is estimated.

    Args:
        gamma: discount a turn.
        samples: bootstrap samples for the two estimates by weights.
        fits: of these, those to which Q is fitted anew for fitted-Q evaluation.
        seed: of the bootstrap and of the folds.
        limits: what overlap is enough.
    """

    gamma: float = 1.0
    samples: int = 1000
    fits: int = 100
    seed: int = 0
    limits: OverlapLimits = field(default_factory=OverlapLimits)


@dataclass(frozen=True)
class PolicyValue:
    """What logs say of a policy.

    Args:
        overlap: how far they speak of it; None where that cannot be said either.
        reasons: why they cannot tell; empty when they can.
        estimates: of each of `ESTIMATORS`, None when they cannot tell.
        sampled: the doubly robust estimate in each bootstrap sample, to compare two policies on the same samples.
    """

    overlap: Overlap | None
    reasons: list[str]
    estimates: dict[str, Estimate | None]
    sampled: Array | None = None

    @classmethod
    def unknown(cls, reasons: list[str]) -> PolicyValue:
        """Of logs that say nothing at all."""
        return cls(None, reasons, dict.fromkeys(ESTIMATORS))

    @property
    def verdict(self) -> str:
        """``estimated`` or ``cannot tell``."""
        return "cannot tell" if self.reasons else "estimated"

    def to_json(self) -> dict[str, Any]:
        """Figures that were not estimated are null."""
        return {
            "verdict": self.verdict,
            "reasons": self.reasons,
            **{name: estimate_figures(self.estimates[name]) for name in ESTIMATORS},
            "overlap": dict.fromkeys(_OVERLAP) if self.overlap is None else asdict(self.overlap),
        }


def estimate_figures(estimate: Estimate | None) -> dict[str, Any]:
    """An estimate for JSON."""
    if estimate is None:
        return {"value": None, "ci95": None}
    return {"value": estimate.value, "ci95": list(estimate.ci95)}


def policy_value(logs: LoggedTurns, turns: FeatureTurns, settings: ValueSettings) -> PolicyValue:
    """Estimates the mean return of a policy.

    Args:
        logs: what was done and earned, and how likely the policy would have done it.
        turns: the features of the same turns.
        settings: how.
    """
    overlap = overlap_of(logs)
    reasons = settings.limits.reasons(overlap)
    if reasons:
        return PolicyValue(overlap, reasons, dict.fromkeys(ESTIMATORS))
    gamma = settings.gamma
    prior = fqe.choose_prior(turns, gamma=gamma, seed=settings.seed)
    counts = resamples(len(logs), settings.samples, settings.seed)
    q, v = fqe.cross_fitted(turns, gamma=gamma, prior=prior, seed=settings.seed)
    robust = doubly_robust(logs, q, v, gamma)
    direct, _ = fqe.fitted_q(turns, counts[: settings.fits], gamma=gamma, prior=prior, corrected=robust.value)
    return PolicyValue(
        overlap,
        [],
        {
            "fqe": direct,
            "pdwis": studentised(per_decision(logs, gamma), counts),
            "doubly_robust": studentised(robust, counts),
        },
        np.asarray(robust.values(counts)),
    )
