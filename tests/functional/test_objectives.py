"""The critic's objectives: their minimiser is the expected return."""

from __future__ import annotations

import pytest
import torch

from lightning_iterppo.functional.objectives import CriticLoss, make_objective


@pytest.mark.parametrize(
    ("loss", "low", "high"), [("bce", 0, 1), ("mse", -3, 5), ("hl-gauss", -3, 5), ("mse", 0, 1), ("hl-gauss", 0, 1)]
)
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_the_minimiser_is_the_expected_return_also_at_the_ends(
    loss: CriticLoss, low: float, high: float, share: float
) -> None:
    objective = make_objective(loss, low, high)
    returns = torch.full((100,), float(low), dtype=torch.float64)
    returns[: round(100 * share)] = high
    shape = (1,) if objective.outputs == 1 else (1, objective.outputs)
    outputs = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([outputs], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        total = objective.losses(outputs.expand(100, *shape[1:]), returns).mean()
        total.backward()
        return total

    optimizer.step(closure)
    assert float(objective.values(outputs)) == pytest.approx(float(returns.mean()), abs=0.01 * (high - low))


@pytest.mark.parametrize("loss", ["mse", "hl-gauss"])
def test_outputs_of_zero_are_the_middle_of_the_range(loss: CriticLoss) -> None:
    objective = make_objective(loss, -2, 8)
    outputs = torch.zeros(3) if objective.outputs == 1 else torch.zeros(3, objective.outputs)
    torch.testing.assert_close(objective.values(outputs), torch.full((3,), 3.0), rtol=0, atol=1e-4)


@pytest.mark.parametrize("loss", ["mse", "hl-gauss"])
def test_a_larger_unit_changes_values_and_no_loss(loss: CriticLoss) -> None:
    small, large = make_objective(loss, 0, 1), make_objective(loss, 0, 100)
    shape = (6,) if small.outputs == 1 else (6, small.outputs)
    outputs = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    returns = torch.linspace(0, 1, 6, dtype=torch.float64)
    torch.testing.assert_close(small.losses(outputs, returns), large.losses(outputs, 100 * returns))
    torch.testing.assert_close(100 * small.values(outputs), large.values(outputs))


def test_a_name_or_a_range_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="one of bce, mse, hl-gauss"):
        make_objective("mae")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="low end below"):
        make_objective("mse", 1, 1)
    with pytest.raises(ValueError, match="bce fits returns from 0 to 1"):
        make_objective("bce", 0, 5)
