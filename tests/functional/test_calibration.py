"""Calibration figures against their definitions."""

from __future__ import annotations

import pytest
import torch

from lightning_iterppo.functional.calibration import calibration_figures


def test_figures_of_a_small_example() -> None:
    probabilities = torch.tensor([0.9, 0.6, 0.4, 0.2])
    returns = torch.tensor([1.0, 0.0, 1.0, 0.0])
    losses = -torch.log(torch.tensor([0.9, 0.4, 0.4, 0.8]))
    figures = calibration_figures(probabilities, returns, losses)
    assert figures["auroc"] == pytest.approx(0.75)  # three of the four pairs are in order
    assert figures["brier"] == pytest.approx((0.01 + 0.36 + 0.36 + 0.04) / 4)
    assert figures["brier_constant"] == pytest.approx(0.25)
    assert figures["ece"] == pytest.approx((0.1 + 0.6 + 0.6 + 0.2) / 4)  # each in a bin of its own
    assert figures["loss"] == pytest.approx(float(losses.mean()))
    assert figures["turns"] == 4


def test_what_has_no_meaning_is_none_and_not_zero() -> None:
    figures = calibration_figures(torch.full((3,), 0.5), torch.ones(3), torch.zeros(3))
    assert figures["auroc"] is None and figures["explained_variance"] is None
    assert figures["brier"] == pytest.approx(0.25)


def test_amounts_are_no_events() -> None:
    returns = torch.tensor([0.5, 3.0, -1.0])
    figures = calibration_figures(returns + 0.5, returns, torch.zeros(3), probability=False)
    assert figures["auroc"] is None and figures["ece"] is None
    assert figures["brier"] == pytest.approx(0.25) and figures["explained_variance"] == pytest.approx(1.0)


def test_nothing_has_no_figures() -> None:
    with pytest.raises(ValueError, match="needs samples"):
        calibration_figures(torch.zeros(0), torch.zeros(0), torch.zeros(0))
