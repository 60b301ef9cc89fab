"""Advantages against numbers computed by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_iterppo.functional import gae, whiten

VALUES = torch.tensor([[0.5, 0.4, 0.3], [0.2, 0.6, 99.0]])
REWARDS = torch.tensor([[0.0, 0.0, 1.0], [0.0, 2.0, 77.0]])  # what stands in the padding must not matter
MASK = torch.tensor([[True, True, True], [True, True, False]])


def test_gae_by_hand() -> None:
    advantages, returns = gae(REWARDS, VALUES, MASK, gamma=0.9, lam=0.8)
    # δ = r + γ V' - V and A = δ + γ λ A', from the last token backwards.
    third = 1.0 - 0.3
    second = 0.9 * 0.3 - 0.4 + 0.72 * third
    first = 0.9 * 0.4 - 0.5 + 0.72 * second
    short_second = 2.0 - 0.6
    short_first = 0.9 * 0.6 - 0.2 + 0.72 * short_second
    torch.testing.assert_close(advantages, torch.tensor([[first, second, third], [short_first, short_second, 0.0]]))
    torch.testing.assert_close(returns, (advantages + VALUES) * MASK)


def test_lambda_one_is_the_reward_to_go_minus_the_value() -> None:
    advantages, returns = gae(REWARDS, VALUES, MASK, lam=1.0)
    expected = torch.tensor([[1.0], [2.0]]) - VALUES
    torch.testing.assert_close(advantages, expected * MASK)
    torch.testing.assert_close(returns, torch.tensor([[1.0, 1.0, 1.0], [2.0, 2.0, 0.0]]))


def test_lambda_zero_is_the_temporal_difference() -> None:
    advantages, _ = gae(REWARDS, VALUES, MASK, lam=0.0)
    expected = torch.tensor([[0.4 - 0.5, 0.3 - 0.4, 1.0 - 0.3], [0.6 - 0.2, 2.0 - 0.6, 0.0]])
    torch.testing.assert_close(advantages, expected)


def test_a_response_is_an_episode_of_its_own() -> None:
    alone, _ = gae(REWARDS[1:, :2], VALUES[1:, :2], MASK[1:, :2])
    together, _ = gae(REWARDS, VALUES, MASK)
    torch.testing.assert_close(together[1, :2], alone[0])


def test_whitened_advantages_have_mean_zero_and_deviation_one() -> None:
    values = torch.tensor([[1.0, 2.0, 3.0], [4.0, -50.0, -50.0]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    white = whiten(values, mask)
    chosen = white[mask]
    torch.testing.assert_close(chosen.mean(), torch.tensor(0.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(chosen.std(unbiased=False), torch.tensor(1.0))
    torch.testing.assert_close(chosen, (values[mask] - 2.5) / 1.25**0.5)
    assert (white[~mask] == 0).all()


@pytest.mark.parametrize("mask", [torch.tensor([True, True]), torch.tensor([False, False])])
def test_where_nothing_differs_nothing_is_learnt(mask: Tensor) -> None:
    assert torch.equal(whiten(torch.tensor([3.0, 3.0]), mask), torch.zeros(2))
