"""The clipped losses of PPO (Schulman et al. 2017)."""

from __future__ import annotations

import torch
from torch import Tensor

# An advantage of 0 comes out as 1e-7 of either sign: what is cut there is nothing.
_ROUNDING = 1e-5


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the entries where ``mask`` is true; 0 when there is none. Same shapes; gives a scalar."""
    weight = mask.to(values.dtype)
    return (values * weight).sum() / weight.sum().clamp(min=1.0)


def clipped_policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, *, clip: float
) -> tuple[Tensor, Tensor]:
    """-E[min(ρ A, clip(ρ, 1-ε, 1+ε) A)] with ρ = π(token) / π_old(token) (equation 7).

    Args:
        logprobs: log-probabilities under the policy in training, (batch, response).
        old_logprobs: the same tokens under the policy that sampled them, (batch, response).
        advantages: (batch, response).
        mask: true where there is a token, (batch, response).
        clip: ε.

    Returns:
        The loss, and the share of tokens where the clipped term was the smaller one, by more than rounding; scalars.
    """
    ratio = torch.exp(logprobs - old_logprobs)
    unclipped = ratio * advantages
    clipped = torch.clamp(ratio, 1.0 - clip, 1.0 + clip) * advantages
    loss = -masked_mean(torch.minimum(unclipped, clipped), mask)
    fraction = masked_mean((unclipped - clipped > _ROUNDING).to(loss.dtype), mask)
    return loss, fraction.detach()


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, *, clip: float) -> Tensor:
    """½ E[max((V - R)², (V_clip - R)²)], V kept within ±ε of its old value; all (batch, response), gives a scalar."""
    near = old_values + torch.clamp(values - old_values, -clip, clip)
    return 0.5 * masked_mean(torch.maximum((values - returns) ** 2, (near - returns) ** 2), mask)
