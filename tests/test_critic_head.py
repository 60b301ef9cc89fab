"""The critic's head on a trunk that stays as it is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_iterppo.critic_head import ActionFeatures, cross_validate_head, solve_head
from lightning_iterppo.functional.objectives import make_objective

BCE = make_objective("bce")


def actions(count: int, seed: int, *, base: float = 0.0, turns: int = 2, noise: bool = False) -> ActionFeatures:
    """Conversations whose return follows the first feature, or nothing."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count * turns, 6, generator=generator)
    logits = torch.zeros(len(values)) if noise else 2 * values[:, 0]
    returns = torch.bernoulli(torch.sigmoid(logits + base), generator=generator)
    return ActionFeatures(values, returns, torch.arange(count).repeat_interleave(turns))


def predicted(features: ActionFeatures, head: tuple[Tensor, Tensor]) -> Tensor:
    return torch.sigmoid(features.values.double() @ head[0] + head[1])


def test_the_past_shapes_the_weights_and_the_newest_conversations_the_mean() -> None:
    past, newest = actions(400, 0), actions(60, 1, base=-3.0)
    head = solve_head(newest, past, prior=1.0, trust=1.0, objective=BCE)
    assert float(head[0][0]) == pytest.approx(2.0, abs=0.5)
    assert float(predicted(newest, head).mean()) == pytest.approx(float(newest.returns.mean()), abs=0.01)


def test_a_head_of_the_newest_alone_has_their_mean() -> None:
    newest = actions(60, 1, base=-1.0)
    head = solve_head(newest, prior=1.0, trust=1.0, objective=BCE)
    assert float(predicted(newest, head).mean()) == pytest.approx(float(newest.returns.mean()), abs=2e-3)


def test_every_conversation_is_held_out_once_and_the_figures_are_of_all_turns() -> None:
    figures = cross_validate_head(
        actions(40, 2, turns=3), actions(100, 3), prior=1.0, trust=1.0, objective=BCE, folds=5, seed=0
    )
    assert figures["turns"] == 120
    brier, constant, auroc = figures["brier"], figures["brier_constant"], figures["auroc"]
    assert brier is not None and constant is not None and auroc is not None
    assert brier < 0.85 * constant and auroc > 0.75


def test_a_head_that_learns_by_heart_is_found_out() -> None:
    """Returns that follow nothing, repeated in a conversation's turns: only whole held-out conversations show it."""
    count, turns = 40, 4
    generator = torch.Generator().manual_seed(5)
    same = torch.randn(count, 64, generator=generator).repeat_interleave(turns, dim=0)
    returns = torch.bernoulli(torch.full((count,), 0.5), generator=generator).repeat_interleave(turns)
    features = ActionFeatures(same, returns, torch.arange(count).repeat_interleave(turns))
    head = solve_head(features, prior=0.01, trust=1.0, objective=BCE)
    assert float(((predicted(features, head) - returns) ** 2).mean()) < 0.01
    figures = cross_validate_head(features, prior=0.01, trust=1.0, objective=BCE, folds=5, seed=0)
    assert figures["brier"] is not None and figures["brier"] > 0.25


def test_less_trust_keeps_the_order_and_the_mean_and_is_less_sure() -> None:
    past, newest = actions(400, 0), actions(60, 1, base=-1.0)
    full, half = (
        predicted(newest, solve_head(newest, past, prior=1.0, trust=trust, objective=BCE)) for trust in (1.0, 0.5)
    )
    assert torch.equal(full.argsort(), half.argsort())
    assert float(half.mean()) == pytest.approx(float(full.mean()), abs=1e-6)
    assert float(half.std()) < 0.8 * float(full.std())


def test_the_constant_knows_no_more_than_the_head() -> None:
    """One success among ten conversations: the mean of the others is always a little beside it."""
    returns = torch.tensor([1.0] + 9 * [0.0])
    features = ActionFeatures(torch.zeros(10, 2), returns, torch.arange(10))
    figures = cross_validate_head(features, prior=1.0, trust=1.0, objective=BCE, folds=10, seed=0)
    assert figures["brier_constant"] == pytest.approx((1 + 9 * (1 / 9) ** 2) / 10)


def test_one_conversation_cannot_be_held_out() -> None:
    assert cross_validate_head(actions(1, 0), prior=1.0, trust=1.0, objective=BCE, folds=5, seed=0) == {}
    assert cross_validate_head(actions(2, 0), prior=1.0, trust=1.0, objective=BCE, folds=5, seed=0)["turns"] == 4


def test_joined_parts_keep_their_conversations_apart() -> None:
    joined = ActionFeatures.join([actions(3, 0), actions(2, 1)])
    assert joined.conversations.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    with pytest.raises(ValueError, match="nothing to fit the critic to"):
        ActionFeatures.join([])


def amounts(count: int, seed: int, *, unit: float = 1.0) -> ActionFeatures:
    """Conversations whose return is an amount that follows the first feature."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count * 2, 6, generator=generator)
    noise = torch.randn(len(values), generator=generator)
    return ActionFeatures(values, unit * (3 + 2 * values[:, 0] + noise), torch.arange(count).repeat_interleave(2))


def test_the_head_of_amounts_is_solved_for_in_their_own_unit() -> None:
    past, newest = amounts(400, 0, unit=10.0), amounts(60, 1, unit=10.0)
    objective = make_objective("mse", -20.0, 80.0)
    weight, bias = solve_head(newest, past, prior=0.01, trust=1.0, objective=objective)
    found = objective.values(newest.values.double() @ weight + bias)
    assert float(found.mean()) == pytest.approx(float(newest.returns.mean()), abs=1e-3)
    assert float((found - newest.returns).square().mean()) == pytest.approx(100, rel=0.3)  # the noise's variance
    figures = cross_validate_head(newest, past, prior=0.01, trust=1.0, objective=objective, folds=5, seed=0)
    assert figures["auroc"] is None and figures["ece"] is None  # an amount is no event
    assert figures["explained_variance"] is not None and figures["explained_variance"] > 0.6


def test_a_prior_means_about_the_same_for_both_losses() -> None:
    """Events that are hardly predictable: there the logistic function is a line."""
    features = actions(2000, 3)
    weak = ActionFeatures(features.values, torch.bernoulli(0.5 + 0.03 * features.values[:, 0]), features.conversations)
    for prior in (1.0, 300.0):
        (logit, _), (slope, _) = (
            solve_head(weak, prior=prior, trust=1.0, objective=make_objective(loss)) for loss in ("bce", "mse")
        )
        torch.testing.assert_close(logit, 4 * slope, rtol=0.05, atol=0.01)


def test_a_histogram_has_no_head_to_solve_for() -> None:
    with pytest.raises(ValueError, match=r"take bce or mse, or critic\.solve_head=false"):
        solve_head(actions(4, 0), prior=1.0, trust=1.0, objective=make_objective("hl-gauss"))
