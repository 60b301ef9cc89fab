"""Adapts the policy's KL coefficient so that one improvement moves the policy about as far as asked."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_iterppo.callbacks.arguments import real_number
from lightning_iterppo.callbacks.outer import OuterCallback

if TYPE_CHECKING:
    from lightning_iterppo.loop import IterativePPOLoop


class AdaptiveKL(OuterCallback):
    """A proportional controller of ``policy.kl_coefficient``, β, after every improvement.

    Ziegler et al. (2019), "Fine-Tuning Language Models from Human Preferences", arXiv 1909.08593, section 2.2::

        e = clip((KL − target) / target, −error_clip, error_clip)
        β ← β · (1 + gain · e),   then kept between minimum and maximum

    KL is ``loop.metrics["policy/kl_old"]``, the measured KL to π_k at the end of the improvement. Ziegler et al. take
    ``gain`` 0.1 and ``error_clip`` 0.2 for thousands of small steps; here one step is a whole improvement and a run has
    a handful of them, so the defaults move β by up to half at a time. If an improvement gave no KL, or one that is not
    finite, β stays as it is. β is shown as ``loop.metrics["policy/kl_coefficient"]`` and survives a resume.

    Hooks: ``on_run_start`` and ``on_iteration_start`` (put the adapted β in place), ``on_improve_end`` (adapt).

    Args:
        target: the KL to π_k wanted after an improvement, in the unit of ``policy/kl_old``. Raising it allows bigger,
            riskier steps; lowering it keeps the policy where Q was fitted.
        gain: how strongly β answers to a relative error. Raising it follows faster and swings more. Together with
            ``error_clip`` its product must stay below 1, or β could become zero or negative.
        error_clip: the largest relative error that counts. Raising it lets one wild improvement change β more.
        minimum: β never goes below it; it must be positive, because from zero no factor leads away.
        maximum: β never goes above it.
    """

    def __init__(
        self,
        target: float,
        gain: float = 1.0,
        error_clip: float = 0.5,
        minimum: float = 1e-4,
        maximum: float = 10.0,
    ) -> None:
        self.target = real_number("AdaptiveKL", "target", target, above=0)
        self.gain = real_number("AdaptiveKL", "gain", gain, above=0)
        self.error_clip = real_number("AdaptiveKL", "error_clip", error_clip, above=0)
        self.minimum = real_number("AdaptiveKL", "minimum", minimum, above=0)
        self.maximum = real_number("AdaptiveKL", "maximum", maximum, above=0)
        if self.gain * self.error_clip >= 1:
            raise MisconfigurationException(
                f"AdaptiveKL: gain · error_clip must be below 1, found {gain} · {error_clip}; lower one of them"
            )
        if self.minimum > self.maximum:
            raise MisconfigurationException(f"AdaptiveKL: minimum {minimum:g} is greater than maximum {maximum:g}")
        self.coefficient: float | None = None

    def on_run_start(self, loop: IterativePPOLoop) -> None:
        """After a resume: the coefficient as it was adapted so far, not the recipe's."""
        self._put(loop)

    def on_iteration_start(self, loop: IterativePPOLoop) -> None:
        """The adapted coefficient, also for a policy that was made anew."""
        self._put(loop)

    def on_improve_end(self, loop: IterativePPOLoop) -> None:
        """One step of the controller."""
        kl = loop.metrics.get("policy/kl_old")
        coefficient = loop.policy.kl_coefficient
        if kl is not None and math.isfinite(kl):
            error = (kl - self.target) / self.target
            error = max(-self.error_clip, min(self.error_clip, error))
            coefficient *= 1 + self.gain * error
        self.coefficient = max(self.minimum, min(self.maximum, coefficient))
        self._put(loop)

    def state_dict(self) -> dict[str, Any]:
        """The adapted coefficient."""
        return {"coefficient": self.coefficient}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what `state_dict` gave."""
        self.coefficient = state_dict["coefficient"]

    def _put(self, loop: IterativePPOLoop) -> None:
        if self.coefficient is not None:
            loop.policy.kl_coefficient = self.coefficient
            loop.metrics["policy/kl_coefficient"] = self.coefficient
