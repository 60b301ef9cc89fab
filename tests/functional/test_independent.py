"""The library's formulas against implementations that nobody here wrote; ``make test-slow`` installs them."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import Tensor

from lightning_iterppo.conversation import Conversation, Turn
from lightning_iterppo.functional import clipped_policy_loss, clipped_value_loss, gae, kl_k3
from lightning_iterppo.functional.calibration import calibration_figures
from lightning_iterppo.functional.returns import lambda_returns

CLOSE = {"rtol": 1e-6, "atol": 1e-6}


def peer(name: str) -> ModuleType:
    """The package, or the test is skipped with the reason: also where it is there and fails to load."""
    return pytest.importorskip(name, reason=f"{name} is not there, or does not load", exc_type=ImportError)


def responses(seed: int) -> tuple[Tensor, ...]:
    """Values, rewards and mask of 16 responses of 1 to 12 tokens, float64."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 13, (16,), generator=generator)
    mask = torch.arange(12) < lengths[:, None]
    values, rewards = torch.randn(2, 16, 12, generator=generator, dtype=torch.float64)
    return values, rewards, mask


@pytest.mark.slow
@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.5])
def test_returns_over_turns_agree_with_torchrl(gamma: float) -> None:
    functional = peer("torchrl.objectives.value.functional")
    rewards, values = torch.randn(2, 7, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    returns = Conversation("a", tuple(Turn("hi", "yes", reward=float(r)) for r in rewards)).returns(gamma)
    done = torch.zeros(7, 1, dtype=torch.bool)
    done[-1] = True
    expected = functional.reward2go(rewards[:, None], done, gamma)
    torch.testing.assert_close(torch.tensor(returns, dtype=torch.float64), expected[:, 0], **CLOSE)
    following = torch.cat([values[1:], torch.zeros(1, dtype=torch.float64)])[:, None]
    for lam in (1.0, 0.7, 0.0):
        found = lambda_returns(returns, values.tolist(), gamma=gamma, lam=lam)
        expected = functional.td_lambda_return_estimate(gamma, lam, following, rewards[:, None], done)
        torch.testing.assert_close(torch.tensor(found, dtype=torch.float64), expected[:, 0], **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (1.0, 0.95), (0.99, 0.9), (0.9, 0.0)])
def test_gae_agrees_with_torchrl(gamma: float, lam: float) -> None:
    functional = peer("torchrl.objectives.value.functional")
    values, rewards, mask = responses(0)
    advantages, returns = gae(rewards, values, mask, gamma=gamma, lam=lam)
    for row, valid in enumerate(mask):
        length = int(valid.sum())
        done = torch.zeros(length, 1, dtype=torch.bool)
        done[-1] = True
        value, reward = values[row, :length, None], rewards[row, :length, None]
        following = torch.cat([value[1:], torch.zeros_like(value[:1])])
        expected, target = functional.generalized_advantage_estimate(gamma, lam, value, following, reward, done)
        torch.testing.assert_close(advantages[row, :length], expected[:, 0], **CLOSE)
        torch.testing.assert_close(returns[row, :length], target[:, 0], **CLOSE)


def _losses_and_gradients(loss: Tensor, *wanted: Tensor) -> tuple[Tensor, ...]:
    return (loss.detach(), *torch.autograd.grad(loss, wanted))


@pytest.mark.slow
def test_clipped_losses_and_their_gradients_agree_with_torchtune() -> None:
    losses = peer("torchtune.rlhf.loss")
    old_values, returns, mask = responses(1)
    noise = torch.Generator().manual_seed(2)
    old, advantages, step, move = torch.randn(4, 16, 12, generator=noise, dtype=torch.float64)
    new = (old + 0.3 * step).requires_grad_()
    values = (old_values + 0.4 * move).requires_grad_()
    theirs = losses.PPOLoss(epsilon=0.2, value_clip_range=0.25, value_coeff=1.0)
    # the parts that PPOLoss returns are detached, the whole is not: each part alone makes the whole by an advantage or
    # an error of zero
    policy_whole, policy_loss, _, _, fraction = theirs(
        old, new, advantages, old_values, old_values, old_values, mask, mask
    )
    value_whole, _, value_loss, _, _ = theirs(
        old, new.detach(), torch.zeros_like(old), old_values, values, returns, mask, mask
    )
    loss, clipped = clipped_policy_loss(new, old, advantages, mask, clip=0.2)
    torch.testing.assert_close(_losses_and_gradients(loss, new), _losses_and_gradients(policy_whole, new), **CLOSE)
    torch.testing.assert_close(loss.detach(), policy_loss, **CLOSE)
    torch.testing.assert_close(clipped, fraction, **CLOSE)
    assert 0 < float(clipped) < 1
    loss = clipped_value_loss(values, old_values, returns, mask, clip=0.25)
    torch.testing.assert_close(_losses_and_gradients(loss, values), _losses_and_gradients(value_whole, values), **CLOSE)
    torch.testing.assert_close(loss.detach(), value_loss, **CLOSE)


@pytest.mark.slow
def test_the_third_kl_estimator_agrees_with_torchrl() -> None:
    llm = peer("torchrl.objectives.llm")
    mine, other = torch.randn(2, 64, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    torch.testing.assert_close(kl_k3(mine, other), llm.k3_kl_token_estimate(other, mine), **CLOSE)


@pytest.mark.slow
def test_calibration_figures_agree_with_scikit_learn() -> None:
    metrics, calibration = peer("sklearn.metrics"), peer("sklearn.calibration")
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(500, generator=generator)
    events = (torch.rand(500, generator=generator) < torch.sigmoid(1.5 * logits - 0.5)).float()
    predicted = torch.sigmoid(logits).double()
    losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, events, reduction="none")
    found = calibration_figures(torch.sigmoid(logits), events, losses)
    truth, guess = events.numpy(), predicted.numpy()
    share, mean = calibration.calibration_curve(truth, guess, n_bins=10)
    counts = torch.histc(predicted, bins=10, min=0, max=1)
    counts = counts[counts > 0] / len(predicted)
    assert found["auroc"] == pytest.approx(metrics.roc_auc_score(truth, guess), abs=1e-6)
    assert found["brier"] == pytest.approx(metrics.brier_score_loss(truth, guess), abs=1e-6)
    assert found["loss"] == pytest.approx(metrics.log_loss(truth, guess), abs=1e-6)
    assert found["ece"] == pytest.approx(float((counts.numpy() * abs(share - mean)).sum()), abs=1e-6)
    assert found["explained_variance"] == pytest.approx(metrics.explained_variance_score(truth, guess), abs=1e-6)
