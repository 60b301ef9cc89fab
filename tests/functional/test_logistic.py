"""The head that is solved for: it is at the optimum, the prior holds it back, and the bias is free."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lightning_iterppo.functional.logistic import fit_logistic


def samples() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 5, generator=generator, dtype=torch.float64)
    true = torch.tensor([2.0, -1.0, 0.0, 0.5, 0.0], dtype=torch.float64)
    y = (torch.rand(400, generator=generator, dtype=torch.float64) < torch.sigmoid(x @ true - 1.0)).double()
    return x, y


def test_the_gradient_is_zero_where_it_ends() -> None:
    x, y = samples()
    weight, bias = fit_logistic(x, y, prior=3.0)
    weight, bias = weight.requires_grad_(True), bias.requires_grad_(True)
    loss = F.binary_cross_entropy_with_logits(x @ weight + bias, y, reduction="sum") + 1.5 * weight.square().sum()
    for gradient in torch.autograd.grad(loss, [weight, bias]):
        assert gradient.abs().max() < 1e-3


def test_it_finds_the_weights_that_made_the_samples() -> None:
    x, y = samples()
    weight, bias = fit_logistic(x, y, prior=0.1)
    torch.testing.assert_close(weight[:2], torch.tensor([2.0, -1.0], dtype=torch.float64), atol=0.5, rtol=0)
    assert abs(float(bias) + 1.0) < 0.5


def test_a_stronger_prior_keeps_the_weights_smaller_and_the_mean_right() -> None:
    x, y = samples()
    weak, _ = fit_logistic(x, y, prior=0.1)
    strong, bias = fit_logistic(x, y, prior=1e6)
    assert strong.norm() < 1e-2 < weak.norm()
    assert float(torch.sigmoid(bias)) == pytest.approx(float(y.mean()), abs=1e-3)


def test_targets_may_lie_between_0_and_1_or_all_be_equal() -> None:
    x, _ = samples()
    for target in (0.0, 0.3, 1.0):
        weight, bias = fit_logistic(x, torch.full((400,), target), prior=1.0)
        assert torch.isfinite(weight).all()
        assert float(torch.sigmoid(bias)) == pytest.approx(target, abs=1e-2)


def test_nothing_to_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="needs samples"):
        fit_logistic(torch.zeros(0, 3), torch.zeros(0), prior=1.0)
