"""The clipped losses against numbers computed by hand."""

from __future__ import annotations

import torch

from lightning_iterppo.functional import clipped_policy_loss, clipped_value_loss, masked_mean

# Ratio, advantage, what counts at ε = 0.2, and whether the clipped term counts.
CASES = [
    (1.5, 1.0, 1.2, True),  # gone far enough in the good direction
    (1.1, 2.0, 2.2, False),
    (0.5, 1.0, 0.5, False),  # gone in the bad direction: the gradient leads back
    (0.5, -1.0, -0.8, True),
    (1.5, -1.0, -1.5, False),
]


def clip_loss(mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    ratios = torch.tensor([[case[0] for case in CASES]])
    advantages = torch.tensor([[case[1] for case in CASES]])
    old = torch.full_like(ratios, -1.3)
    logprobs = (old + ratios.log()).requires_grad_()
    loss, fraction = clipped_policy_loss(logprobs, old, advantages, mask, clip=0.2)
    loss.backward()
    assert logprobs.grad is not None
    return loss.detach(), fraction, logprobs.grad


def test_clip_loss_by_hand() -> None:
    loss, fraction, gradient = clip_loss(torch.ones(1, len(CASES), dtype=torch.bool))
    torch.testing.assert_close(loss, torch.tensor(-sum(case[2] for case in CASES) / len(CASES)))
    torch.testing.assert_close(fraction, torch.tensor(2 / 5))
    for index, (ratio, advantage, _, clipped) in enumerate(CASES):
        expected = 0.0 if clipped else -ratio * advantage / len(CASES)
        torch.testing.assert_close(gradient[0, index], torch.tensor(expected))


def test_padding_counts_nowhere_in_the_clip_loss() -> None:
    mask = torch.tensor([[True, True, False, False, False]])
    loss, fraction, gradient = clip_loss(mask)
    torch.testing.assert_close(loss, torch.tensor(-(1.2 + 2.2) / 2))
    torch.testing.assert_close(fraction, torch.tensor(0.5))
    assert (gradient[~mask] == 0).all()


def test_value_loss_by_hand() -> None:
    values, old = torch.tensor([[1.0, 0.1, 7.0]]), torch.tensor([[0.2, 0.2, 0.0]])
    returns, mask = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[True, True, False]])
    # Token 1 jumped from 0.2 to 1.0 and is taken as 0.7; token 2 stayed near.
    expected = 0.5 * ((0.7 - 1.0) ** 2 + 0.1**2) / 2
    torch.testing.assert_close(clipped_value_loss(values, old, returns, mask, clip=0.5), torch.tensor(expected))


def test_the_mean_of_nothing_is_zero() -> None:
    assert float(masked_mean(torch.tensor([5.0]), torch.tensor([False]))) == 0.0
