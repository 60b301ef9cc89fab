"""Advantages over the tokens of one response."""

from __future__ import annotations

import torch
from torch import Tensor


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float = 1.0, lam: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, equation 16) over the tokens of each response.

    A response is one episode: the value after its last token is 0, because what follows is in the reward already.

    Args:
        rewards: reward of each token, shape (batch, response); a response-level reward sits on the last token.
        values: value before each token, same shape.
        mask: true where there is a token; responses are padded on the right, same shape.
        gamma: discount from token to token; 1 leaves a response-level reward as it is.
        lam: λ; 1 gives reward-to-go minus value, 0 the one-step temporal difference.

    Returns:
        Advantages and returns (advantages + values), each (batch, response), 0 where the mask is false.
    """
    valid = mask.to(values.dtype)
    values = values * valid
    rewards = rewards * valid
    following = torch.zeros_like(values[:, 0])
    advantage = torch.zeros_like(following)
    found = []
    for step in reversed(range(values.shape[1])):
        delta = rewards[:, step] + gamma * following - values[:, step]
        advantage = (delta + gamma * lam * advantage) * valid[:, step]
        following = values[:, step]
        found.append(advantage)
    advantages = torch.stack(found[::-1], dim=1)  # (batch, response)
    return advantages, (advantages + values) * valid


def whiten(values: Tensor, mask: Tensor, *, eps: float = 1e-8) -> Tensor:
    """Mean 0 and standard deviation 1 over the masked entries; 0 elsewhere.

    A batch whose entries are all equal gives zeros: where nothing differs, nothing is to be learnt.

    Args:
        values: any shape.
        mask: same shape, true where an entry counts.
        eps: added to the standard deviation.
    """
    chosen = values[mask]
    if chosen.numel() == 0:
        return torch.zeros_like(values)
    centred = values - chosen.mean()
    return torch.where(mask, centred / (chosen.std(unbiased=False) + eps), torch.zeros_like(values))
